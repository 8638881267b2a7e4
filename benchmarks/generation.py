"""Benchmark of generated text: with a cache of keys and values, against reading the whole text for each token."""

from benchmarks.measure import Row, device, side_by_side
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.quality.generation import GenerationConfig, Writer

RECURRENCE, TOKENS = 4, 512


def run() -> list[Row]:
    """Measure one text of 512 tokens at T = 4 with two widths, and the caches' memory."""
    return [_speed(128, pairs=3), _speed(256, pairs=3), _memory()]


def _writer(width: int, cache: str) -> Writer:
    model = build_model(ModelConfig(width=width, heads=width // 128, context=520)).eval()
    model.initialise(0)
    settings = GenerationConfig(max_tokens=TOKENS, seed=1, cache=cache, stop_at_separator=False)
    return Writer(model.to(device()), [[65]], settings, recurrence=RECURRENCE)


def _speed(width: int, *, pairs: int) -> Row:
    written: dict[str, list[int]] = {}

    def write(cache: str) -> None:
        written[cache] = [token for _, token in _writer(width, cache).write()]

    ratio = side_by_side(lambda _: write("none"), lambda _: write("full"), pairs=pairs)
    assert written["none"] == written["full"], "with and without the cache, the text is the same"
    speed = f"{TOKENS / ratio.fast_seconds:.0f} tokens a second"
    shape = f"width {width}, layers 1+1+1, T = {RECURRENCE}, one text"
    return Row(name=f"uncached / cached, {TOKENS} tokens; {shape}", result=f"{ratio}; {speed}", wanted="10x")


def _memory() -> Row:
    full, shared = (_writer(128, cache) for cache in ("full", "shared"))
    sizes = []
    for writer in (full, shared):
        for _ in writer.write():
            pass
        assert writer._cache is not None
        sizes.append(writer._cache.nbytes)
    return Row(
        name="memory of the cache: a set of keys and values for each loop / one for all loops; T = 4, layers 1+1+1",
        result=f"{sizes[0] / sizes[1]:.2f}x ({sizes[0] / 2**20:.1f} MiB against {sizes[1] / 2**20:.1f} MiB)",
    )
