"""Judgments in the JSON of Argilla and Label Studio, both ways."""
