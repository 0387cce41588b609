"""One interleaved benchmark of the engine against llama.cpp, OpenVINO, OpenVINO GenAI and ONNX Runtime."""
