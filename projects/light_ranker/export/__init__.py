"""From a trained ranker to one file that scores: ONNX and its signature."""
