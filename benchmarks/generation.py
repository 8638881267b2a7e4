"""Benchmark of generated text: with a cache of keys and values, against reading the whole text for each token."""

from benchmarks.measure import Row, device, side_by_side
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.quality.generation import GenerationConfig, Writer

CONFIG = ModelConfig(width=128, heads=1, context=520)
RECURRENCE, TOKENS = 4, 512


def run() -> list[Row]:
    """Measure one text of 512 tokens at T = 4, and the caches' memory."""
    model = build_model(CONFIG).eval()
    model.initialise(0)
    model.to(device())
    written: dict[str, list[int]] = {}
    memory: dict[str, int] = {}

    def write(cache: str) -> None:
        settings = GenerationConfig(max_tokens=TOKENS, seed=1, cache=cache, stop_at_separator=False)
        writer = Writer(model, [[65]], settings, recurrence=RECURRENCE)
        written[cache] = [token for _, token in writer.write()]
        memory[cache] = 0 if writer._cache is None else writer._cache.nbytes

    ratio = side_by_side(lambda _: write("none"), lambda _: write("full"), pairs=2, warm_up=0)
    write("shared")
    speed = f"{TOKENS / ratio.fast_seconds:.0f} tokens a second"
    same = "the same text" if written["none"] == written["full"] else "ANOTHER TEXT"
    shape = "width 128, layers 1+1+1, T = 4, one text"
    return [
        Row(name=f"uncached / cached, {TOKENS} tokens; {shape}", result=f"{ratio}; {speed}; {same}", wanted="10x"),
        Row(
            name="memory of the cache, each loop its own keys and values / one set for all loops",
            result=f"{memory['full'] / memory['shared']:.2f}x ({memory['full'] / 2**20:.1f} MiB against "
            f"{memory['shared'] / 2**20:.1f} MiB)",
        ),
    ]
