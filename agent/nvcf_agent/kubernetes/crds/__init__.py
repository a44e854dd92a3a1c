"""The custom resources, in NVIDIA's form: typed models, and the definitions that are generated from them."""
