"""Other products that need more of `jaxalign serve` than the OpenAI protocol."""
