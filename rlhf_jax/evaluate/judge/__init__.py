"""Judges of truth and information: language models fine-tuned to say yes or no to an answer of a question.

TruthfulQA's authors fine-tuned GPT-3 for that (Lin et al. 2022, appendix B). A judge that is trained here is of another
model and other answers, and its name and its accuracy go with every number that it gives.
"""
