"""Result files in miniature, as `python -m benchmarks --out` writes them."""

MAX_AUTOTUNE = "torch.compile, max-autotune"
H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


def run(device, started, *records):
    machine = {
        "device": device,
        "clock": "device time (CUPTI)",
        "versions": {"jax": "0.11.2"},
        "commit": "0123456789abcdef",
        "started": started,
    }
    return {"machine": machine, "records": list(records)}


def side(median, temp_bytes, source="cupti"):
    timing = {"median_us": median, "low_us": median - 1, "high_us": median + 1, "source": source}
    return {"temp_bytes": temp_bytes, "timing": timing}


def timed(case, xla, ours, floor=10.0, memory=(0, 0), source="cupti"):
    sides = {"xla": side(xla, memory[0], source), "ours": side(ours, memory[1], source)}
    return {"case": case, "floor_us": floor, "failure": ""} | sides


def beside(record, moved=None, **peers):
    """The record with peers: a time each, or the reason why there is none."""
    names = {"flags": "XLA, cuBLASLt", "others": "XLA, no autotuning", "torch": "torch.compile", "tuned": MAX_AUTOTUNE}
    made = [
        {"name": names[key], "missing": value}
        if isinstance(value, str)
        else {"name": names[key], "missing": "", "side": side(value, 0)}
        for key, value in peers.items()
    ]
    return record | {"peers": made, "floor_bytes": 100, "moved_bytes": moved}


def failed(case):
    return {"case": case, "floor_us": None, "failure": "Traceback ...\nValueError: a | b\n", "xla": None, "ours": None}


EARLY = run(
    H100,
    "2026-01-01T00:00:00Z",
    timed("moe", 300, 150, memory=(8_000_000, 2_000_000)),
    timed("groupnorm_silu", 90, 100),
    timed("log_softmax", 400, 100),
)
LATE = run(
    H200,
    "2026-01-02T00:00:00Z",
    timed("im2col_3x3", 100, 12.5, memory=(500_000, 0)),
    timed("log_softmax", 200, 100, floor=80.0, memory=(1_000_000, 1_000_000)),
    failed("rope_half_heads"),
    timed("no_longer_there", 50, 50, floor=None),
    timed("kv_concat", 300, 100, memory=(None, None)),
)
