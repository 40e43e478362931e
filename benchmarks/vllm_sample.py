"""vLLM's side of sample.py: run by a Python that has vLLM and need not have spillover.

As a script it reads what to do from the first line of its input and measures once for every
further line.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from typing import Any


class Vllm:
    """vLLM in a process of its own environment; it starts once and waits between repeats."""

    def __init__(self, python: str, asked: dict[str, Any]) -> None:
        threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
        told = {  # on its own, vLLM keeps a core free and binds threads to the others
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": threads,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self.process = subprocess.Popen(
            [python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **told},
        )
        self.about = self._say(json.dumps(asked))

    def _say(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        while said := self.process.stdout.readline():
            if said.startswith("RESULT "):
                found: dict[str, Any] = json.loads(said.removeprefix("RESULT "))
                return found
        raise RuntimeError("vLLM ended before its result; what it printed stands above")

    def time(self, _repeat: int) -> dict[str, float]:
        found = self._say("repeat")
        return {"seconds": found["taken"] / found["tokens"], "setup": 0.0, **found}

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def say(found: dict[str, Any]) -> None:
    print("RESULT " + json.dumps(found), flush=True)


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    start = time.perf_counter()
    count = len(asked["adapters"])
    engine = LLM(
        model=asked["model"],
        dtype=asked["dtype"],
        load_format=asked["load_format"],
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.4,  # the other sides live on the same GPU
        enable_lora=True,
        max_loras=count,
        max_cpu_loras=count,
        max_lora_rank=8,
        max_model_len=512,
        max_num_seqs=256,
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    how = SamplingParams(
        n=asked["answers"],
        temperature=1.0,
        max_tokens=asked["tokens"],
        min_tokens=asked["tokens"],
        ignore_eos=True,
        detokenize=False,
    )
    pairs = [(prompt, number) for number in range(count) for prompt in asked["prompts"]]
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in pairs]
    loras = [LoRARequest(f"a{n}", n + 1, asked["adapters"][n]) for _, n in pairs]
    engine.generate(prompts[:1], how, lora_request=loras[:1], use_tqdm=False)
    versions = {p: _version(p) for p in ("vllm", "vllm-cpu", "torch", "transformers")}
    say({"versions": versions, "setup": time.perf_counter() - start, "max_num_seqs": 256})
    for _ in sys.stdin:
        begun = time.perf_counter()
        made = engine.generate(prompts, how, lora_request=loras, use_tqdm=False)
        taken = time.perf_counter() - begun
        tokens = sum(len(one.token_ids) for request in made for one in request.outputs)
        say({"taken": taken, "tokens": tokens})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
