"""What a checkpoint says and how probable it finds what others said, alone or beside another checkpoint.

    cases.py       questions with what an answer has to carry, and the score of answers
    retrieval.py   the baseline: the same data without a network
    answers.py     a checkpoint's answers, by the engine that serves them
    passages.py    texts and conversations that are there already, and their perplexity
    divergence.py  how far two models of one vocabulary are apart, token by token
    compare.py     two checkpoints on the same questions and texts
    report.py      the comparison as one page, Markdown or HTML

Refuses to know training and HTTP.

    $ causerie eval --checkpoint checkpoints/causette --against OTHER --report report.html
"""
