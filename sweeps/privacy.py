"""Nothing phones home: the switches of every library that would."""

import os

SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def switch_telemetry_off() -> None:
    """Set the switches for this process and those that it starts; called before the libraries are imported."""
    os.environ.update(SWITCHES)
