"""The model: SASRec, experts, fusion, router."""
