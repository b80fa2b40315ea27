"""Writes whose outcome depends on the clock, on chance or on hidden state: what replicas get wrong when they repeat
commands instead of taking their effects."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import redis

SCRIPT_TIME = "local t = redis.call('TIME') redis.call('RPUSH', KEYS[1], t[1] .. '.' .. t[2]) return t[2]"
SCRIPT_RANDOM = (
    "local m = redis.call('SRANDMEMBER', KEYS[1]) "
    "if m then redis.call('SREM', KEYS[1], m) redis.call('RPUSH', KEYS[2], m) end "
    "redis.call('SET', KEYS[3], math.random(1000000)) return m"
)
SCRIPT_EXPIRY = "if redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('INCR', KEYS[2]) end return 0"
LIBRARY = """#!lua name=mixed{n}
redis.register_function('pick{n}', function(keys, args)
  local m = redis.call('SPOP', keys[1])
  redis.call('RPUSH', keys[2], m or 'none')
  return m
end)
"""


class Mixed:
    """One client's stream of such writes, from a seed. `step()` sends one pipeline of them."""

    def __init__(self, client: redis.Redis, seed: int, hot: int = 30) -> None:
        self.client: Any = client
        self.random = random.Random(seed)
        self.hot = [f"hot:{i}" for i in range(hot)]
        self.seed, self.steps = seed, 0
        self.errors: Counter[str] = Counter()  # none is expected but overflow of a number that APPEND made longer

    def prepare(self) -> None:
        """Groups, functions and data in another database."""
        self.client.xgroup_create(f"stream:{self.seed}", "g", id="0", mkstream=True)
        self.client.function_load(LIBRARY.format(n=self.seed))
        with self.client.pipeline(transaction=False) as pipe:
            pipe.execute_command("SELECT", 3)
            pipe.execute_command("SET", f"db3:{self.seed}", "there", "PX", "3600000")
            pipe.execute_command("SELECT", 0)
            pipe.execute()

    def run(self, seconds: float) -> int:
        """Steps until the time is up; returns the number of steps."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()
        return self.steps

    def step(self) -> None:
        """One pipeline: short lives on hot keys, then chance, scripts, a function, a stream with a group."""
        pick, seed = self.random, self.seed
        self.steps += 1
        with self.client.pipeline(transaction=bool(self.steps % 3 == 0)) as pipe:
            for key in pick.sample(self.hot, 6):
                self._hot(pipe, key)
            pipe.sadd("chance", *[pick.randrange(2000) for _ in range(8)])
            pipe.spop("chance", pick.randrange(1, 4))
            pipe.execute_command("SRANDMEMBER", "chance", -3)
            pipe.eval(SCRIPT_TIME, 1, f"times:{seed}")
            pipe.eval(SCRIPT_RANDOM, 3, "chance", f"picked:{seed}", f"drawn:{seed}")
            pipe.eval(SCRIPT_EXPIRY, 2, pick.choice(self.hot), f"survivors:{seed}")
            pipe.execute_command("FCALL", f"pick{seed}", 2, "chance", f"fpicked:{seed}")
            pipe.xadd(f"stream:{seed}", {"n": self.steps, "r": pick.random()}, maxlen=500, approximate=True)
            pipe.execute_command("XREADGROUP", "GROUP", "g", f"c{pick.randrange(3)}", "COUNT", 2, "STREAMS",
                                 f"stream:{seed}", ">")
            pipe.execute_command("XAUTOCLAIM", f"stream:{seed}", "g", "c9", 5, "0", "COUNT", 1)
            pipe.zadd("ranks", {f"m{pick.randrange(300)}": pick.random()})
            pipe.zpopmin("ranks") if pick.random() < 0.3 else pipe.zincrby("ranks", 0.1, f"m{pick.randrange(300)}")
            pipe.hset(f"hash:{seed}", f"f{pick.randrange(400)}", pick.random())
            pipe.execute_command("HINCRBYFLOAT", f"hash:{seed}", "float", "0.1")
            pipe.pfadd("visitors", pick.randrange(100000))
            for answer in pipe.execute(raise_on_error=False):
                if isinstance(answer, Exception) and "out of range" not in str(answer):
                    self.errors[str(answer)] += 1

    def _hot(self, pipe: Any, key: str) -> None:
        pick = self.random
        match pick.randrange(8):
            case 0 | 1:
                pipe.set(key, pick.randrange(100), px=pick.randint(1, 20))
            case 2:
                pipe.execute_command("SET", key, pick.randrange(100), "NX", "PX", pick.randint(1, 20))
            case 3:
                pipe.incr(key)
                pipe.pexpire(key, pick.randint(1, 20))
            case 4:
                pipe.append(key, "1")
            case 5:
                pipe.execute_command("GETEX", key, "PX", pick.randint(1, 20))
            case 6:
                pipe.execute_command("SET", key, 7, "KEEPTTL", "GET")
            case _:
                pipe.persist(key)
