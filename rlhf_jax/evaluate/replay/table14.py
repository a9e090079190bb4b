"""Table 14 of Ouyang et al. 2022, as printed: the automatic evaluations of twelve models.

The models are GPT-3, SFT, PPO and PPO-ptx of 1.3, 6 and 175 billion parameters, under the names that the released samples
have. F1 and BLEU are in percent; everything else is a share, and entropies are in bits.
"""

MODELS = (
    "gpt-xl",
    "gpt-6b",
    "gpt-175b",
    "sft-xl",
    "sft-6b",
    "sft-175b",
    "ppo-noptx-xl",
    "ppo-noptx-6b",
    "ppo-noptx-175b",
    "ppo-ptx-xl",
    "ppo-ptx-6b",
    "ppo-ptx-175b",
)

# The paper's words for its prompts; the released samples have others.
BASIC, RESPECTFUL, BIASED = "basic", "respectful", "biased"
QA, INSTRUCTION, BOTH = "QA prompt", "instruction", "QA + instruct"
ZERO, FEW, ONLY = "zero-shot", "few-shot", ""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


# (task, metric) -> prompt -> the numbers of MODELS. The summaries of Reddit posts (TLDR) have the numbers of CNN/DM in
# print, all twelve; the released samples show that they are not theirs.
TABLE: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("Winogender", "entropy"): {
        BASIC: _numbers(".750 .721 .735  .583 .535 .503  .698 .587 .618  .760 .719 .737"),
        RESPECTFUL: _numbers(".774 .753 .796  .561 .446 .479  .644 .562 .527  .608 .585 .696"),
        BIASED: _numbers(".760 .773 .783  .561 .516 .540  .706 .567 .564  .676 .543 .690"),
    },
    ("CrowS-Pairs", "entropy"): {
        BASIC: _numbers(".448 .430 .410  .356 .326 .241  .355 .361 .326  .448 .434 .413"),
        RESPECTFUL: _numbers(".419 .413 .362  .302 .260 .204  .281 .258 .270  .310 .273 .243"),
        BIASED: _numbers(".420 .419 .353  .305 .252 .187  .287 .288 .223  .314 .254 .205"),
    },
    ("RealToxicityPrompts", "toxicity"): {
        BASIC: _numbers(".228 .229 .231  .198 .211 .211  .213 .214 .228  .228 .227 .234"),
        RESPECTFUL: _numbers(".211 .232 .233  .196 .196 .199  .198 .176 .205  .179 .204 .196"),
        BIASED: _numbers(".250 .261 .285  .236 .250 .256  .254 .382 .427  .263 .512 .400"),
    },
    ("TruthfulQA", "true"): {
        QA: _numbers(".312 .220 .284  .324 .436 .515  .546 .586 .755  .297 .476 .712"),
        INSTRUCTION: _numbers(".340 .414 .570  .360 .756 .665  .634 .928 .879  .355 .733 .815"),
        BOTH: _numbers(".335 .348 .438  .517 .659 .852  .807 .760 .944  .322 .494 .610"),
    },
    ("TruthfulQA", "true and informative"): {
        QA: _numbers(".193 .186 .251  .267 .253 .271  .524 .574 .752  .285 .464 .689"),
        INSTRUCTION: _numbers(".212 .212 .226  .282 .213 .257  .559 .187 .382  .339 .350 .494"),
        BOTH: _numbers(".218 .267 .242  .288 .319 .206  .789 .704 .588  .242 .399 .315"),
    },
    ("HellaSwag", "accuracy"): {
        ZERO: _numbers(".549 .673 .781  .528 .672 .753  .507 .646 .743  .552 .690 .807"),
        FEW: _numbers(".550 .677 .791  .516 .657 .741  .530 .671 .759  .559 .694 .820"),
    },
    ("WSC", "accuracy"): {
        ZERO: _numbers(".567 .635 .740  .615 .606 .654  .663 .654 .683  .692 .587 .731"),
        FEW: _numbers(".587 .654 .798  .615 .625 .779  .625 .596 .654  .644 .673 .788"),
    },
    ("RTE", "accuracy"): {
        ZERO: _numbers(".527 .617 .563  .487 .516 .570  .480 .708 .704  .538 .657 .668"),
        FEW: _numbers(".585 .682 .614  .574 .657 .700  .606 .585 .711  .545 .697 .765"),
    },
    ("SST", "accuracy"): {
        ZERO: _numbers(".592 .616 .898  .873 .888 .907  .817 .820 .920  .812 .901 .900"),
        FEW: _numbers(".842 .930 .944  .909 .933 .936  .794 .880 .944  .838 .923 .938"),
    },
    ("QuAC", "F1"): {
        ZERO: _numbers("32.13 38.19 42.55  34.52 41.19 45.22  29.02 37.64 34.52  35.04 37.35 41.60"),
        FEW: _numbers("36.02 41.78 45.38  35.95 43.13 48.77  31.81 40.63 36.00  39.40 42.42 46.99"),
    },
    ("SQuADv2", "F1"): {
        ZERO: _numbers("51.97 58.66 64.30  36.88 46.53 57.67  45.37 47.42 43.68  45.46 47.23 59.85"),
        FEW: _numbers("58.86 62.33 69.75  46.62 53.91 65.90  48.11 52.34 51.95  58.33 63.78 69.93"),
    },
    ("DROP", "F1"): {
        ZERO: _numbers("17.68 19.96 27.53  13.29 13.23 15.79  14.70 12.34 13.08  14.71 10.64 15.23"),
        FEW: _numbers("25.43 30.08 35.27  23.84 30.99 35.85  21.61 27.11 27.78  23.89 29.39 33.34"),
    },
    ("fr-en", "BLEU"): {
        ZERO: _numbers("30.65 34.99 38.92  25.56 33.25 36.90  19.85 25.22 24.16  25.77 30.41 34.28"),
        FEW: _numbers("31.37 35.49 39.93  24.73 31.76 35.07  21.65 29.96 26.58  27.67 33.56 36.76"),
    },
    ("CNN/DM", "ROUGE-L"): {ONLY: _numbers(".182 .197 .196  .198 .235 .225  .218 .231 .227  .214 .231 .220")},
    ("TLDR", "ROUGE-L"): {ONLY: _numbers(".182 .197 .196  .198 .235 .225  .218 .231 .227  .214 .231 .220")},
}
