"""Where the public traces are: in the folder that EQUIPOISE_TRACES names, else in `traces/` of the checkout.

They are not ours to ship: arena_27_clients.csv is the real workload of the VTC paper's artifact (github.com/Ying1123/VTC-artifact,
Apache-2.0) with the columns arrival_s, client, input_tokens, output_tokens; azure_llm_conv_2023.csv and
azure_llm_code_2023.csv are AzureLLMInferenceTrace_{conv,code}.csv of github.com/Azure/AzurePublicDataset (CC-BY-4.0).
"""

import os
from pathlib import Path

ARENA = "arena_27_clients.csv"
AZURE_CONVERSATION = "azure_llm_conv_2023.csv"
AZURE_CODE = "azure_llm_code_2023.csv"


def trace_path(name: str) -> Path:
    """Return the path of a trace; SystemExit says where it comes from."""
    folder = Path(os.environ.get("EQUIPOISE_TRACES") or Path(__file__).parents[1] / "traces")
    path = (folder / name).resolve()
    if not path.is_file():
        raise SystemExit(f"{path} is missing.\n\n{__doc__}")
    return path
