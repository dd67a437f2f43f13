"""Parameters that have a token drawn by kernels of their own: every way, but for constraints."""

WAYS = [
    {"temperature": 0},
    {"temperature": 1, "seed": 1},
    {"temperature": 1, "seed": 1, "top_k": 5},
    {"temperature": 1, "seed": 1, "top_p": 0.7},
    {"temperature": 1, "seed": 1, "min_p": 0.1},
    {"temperature": 1, "seed": 1, "top_k": 9, "top_p": 0.9, "frequency_penalty": 0.5},
    {"temperature": 0, "presence_penalty": 0.5},
    {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {5: 1.0}},
    {"temperature": 0, "min_new_tokens": 2, "stop_token_ids": [7], "ignore_eos": False},
]
