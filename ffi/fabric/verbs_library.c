/* verbs_library.c: see verbs_library.h. */
#include "fabric/verbs_library.h"

#include "fabric/verbs.h"

#include <stdio.h>

#ifdef VERBS_BUILT

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#define REMEDY "install it: apt-get install libibverbs1 ibverbs-providers, or dnf install libibverbs"

static struct verbs_library library;
static bool loaded;
static char trouble[VERBS_WHY_BYTES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    const struct {
        const char *name;
        void *place;
    } wanted[] = {
        {"ibv_get_device_list", &library.get_device_list},
        {"ibv_free_device_list", &library.free_device_list},
        {"ibv_get_device_name", &library.get_device_name},
        {"ibv_open_device", &library.open_device},
        {"ibv_close_device", &library.close_device},
        {"ibv_query_device", &library.query_device},
        {"ibv_query_port", &library.query_port},
        {"ibv_query_gid", &library.query_gid},
        {"ibv_alloc_pd", &library.alloc_pd},
        {"ibv_dealloc_pd", &library.dealloc_pd},
        {"ibv_reg_mr", &library.reg_mr},
        {"ibv_dereg_mr", &library.dereg_mr},
        {"ibv_create_comp_channel", &library.create_comp_channel},
        {"ibv_destroy_comp_channel", &library.destroy_comp_channel},
        {"ibv_create_cq", &library.create_cq},
        {"ibv_destroy_cq", &library.destroy_cq},
        {"ibv_get_cq_event", &library.get_cq_event},
        {"ibv_ack_cq_events", &library.ack_cq_events},
        {"ibv_create_qp", &library.create_qp},
        {"ibv_modify_qp", &library.modify_qp},
        {"ibv_destroy_qp", &library.destroy_qp},
        {"ibv_get_async_event", &library.get_async_event},
        {"ibv_ack_async_event", &library.ack_async_event},
    };
    void *handle = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(trouble, sizeof trouble, "libibverbs.so.1 cannot be loaded (%s): " REMEDY, dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *symbol = dlsym(handle, wanted[i].name);
        if (!symbol) {
            snprintf(trouble, sizeof trouble, "libibverbs.so.1 has no %s: it is too old", wanted[i].name);
            return;
        }
        memcpy(wanted[i].place, &symbol, sizeof symbol);
    }
    loaded = true;
}

const struct verbs_library *verbs_library(char *why, uint32_t why_bytes) {
    pthread_once(&once, load);
    if (loaded) return &library;
    if (why_bytes > 0) snprintf(why, why_bytes, "%s", trouble);
    return NULL;
}

bool verbs_built(void) { return true; }
bool verbs_usable(char *why, uint32_t why_bytes) { return verbs_library(why, why_bytes) != NULL; }

#else

static void say(char *why, uint32_t why_bytes) {
    if (why_bytes > 0)
        snprintf(why, why_bytes, "%s", "musidecar was built without verbs: apt-get install libibverbs-dev, and install it again from source");
}

bool verbs_built(void) { return false; }
bool verbs_usable(char *why, uint32_t why_bytes) {
    say(why, why_bytes);
    return false;
}

/* What is never reached: there is no fabric without verbs_new(). */
struct verbs *verbs_new(const struct verbs_config *config, char *why, uint32_t why_bytes) {
    (void)config;
    say(why, why_bytes);
    return NULL;
}
void verbs_free(struct verbs *v) { (void)v; }
struct fabric *verbs_fabric(struct verbs *v) { return (struct fabric *)(void *)v; }
void *verbs_log(struct verbs *v) { return v; }
void *verbs_background(struct verbs *v) { return v; }
int verbs_describe(struct verbs *v, uint32_t peer, struct verbs_end *own, char *why, uint32_t why_bytes) {
    (void)v, (void)peer, (void)own;
    say(why, why_bytes);
    return -1;
}
int verbs_attach(struct verbs *v, uint32_t peer, const struct verbs_end *theirs, char *why, uint32_t why_bytes) {
    (void)v, (void)peer, (void)theirs;
    say(why, why_bytes);
    return -1;
}
int verbs_open_link(struct verbs *v, uint32_t peer) { return (void)v, (void)peer, -1; }
uint64_t verbs_life(const struct verbs *v, uint32_t peer) { return (void)v, (void)peer, 0u; }
bool verbs_is_broken(const struct verbs *v, uint32_t peer) { return (void)v, (void)peer, false; }
bool verbs_is_open(const struct verbs *v, uint32_t peer) { return (void)v, (void)peer, false; }
int verbs_wait_fd(const struct verbs *v) { return (void)v, -1; }
void verbs_drain(struct verbs *v) { (void)v; }
bool verbs_arm(struct verbs *v) { return (void)v, true; }
bool verbs_outstanding(const struct verbs *v) { return (void)v, false; }
struct verbs_place verbs_place(const struct verbs *v) { return (void)v, (struct verbs_place){0}; }
struct verbs_counters verbs_counters(const struct verbs *v) { return (void)v, (struct verbs_counters){0}; }

#endif
