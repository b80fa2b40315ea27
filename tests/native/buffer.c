/* A buffer that is never empty, bytes coming in at one end and leaving at the other, must not grow for ever. */
#include "buffer.h"

#include <stdio.h>

#define HELD_BYTES (4u << 20)
#define STEP_BYTES (1u << 16)

int main(void) {
    struct buffer b = {0};
    static uint8_t step[STEP_BYTES];
    uint64_t in = 0, out = 0;
    while (out < 100ull * HELD_BYTES) {
        for (uint32_t i = 0; i < STEP_BYTES; i++) step[i] = (uint8_t)((in + i) * 31);
        buffer_append(&b, step, STEP_BYTES);
        in += STEP_BYTES;
        if (in - out <= HELD_BYTES) continue;
        CHECK(buffer_bytes(&b)[0] == (uint8_t)(out * 31) && buffer_length(&b) == in - out);
        buffer_consume(&b, STEP_BYTES);
        out += STEP_BYTES;
        CHECK(b.capacity <= 4 * HELD_BYTES);
    }
    buffer_free(&b);
    printf("buffer: %llu bytes went through %u\n", (unsigned long long)out, HELD_BYTES);
    return 0;
}
