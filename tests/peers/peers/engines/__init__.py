"""One module per engine, each with a class `Engine`; `base.Engine` says what it has to do.

A worker process imports one of them and nothing of the others.
"""

# name -> module
MODULES = {
    "ours": "ours",
    "llama.cpp": "llama",
    "openvino": "openvino_sdpa",
    "openvino-paged": "openvino_paged",
    "openvino-genai": "openvino_genai",
    "onnxruntime": "onnxruntime_gqa",
    "onnxruntime-genai": "onnxruntime_genai",
}
