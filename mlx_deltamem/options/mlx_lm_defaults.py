"""The defaults of mlx-lm's options, as `mlx_lm.generate` has them.

They are repeated here because the import of mlx-lm takes a second, and `--help` needs none of it. A test compares them
with the installed mlx-lm.
"""

MAX_TOKENS = 100
TEMP = 0.0
TOP_P = 1.0
MIN_P = 0.0
TOP_K = 0
XTC_PROBABILITY = 0.0
XTC_THRESHOLD = 0.1
MIN_TOKENS_TO_KEEP = 1
QUANTIZED_KV_START = 5000
PREFILL_STEP_SIZE = 2048
