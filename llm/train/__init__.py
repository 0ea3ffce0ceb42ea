"""Training: text and conversations in, a servable checkpoint out.

data        files → token ids, loss masks and batches
loss        cross entropy over the whole vocabulary, or over a sample of it
vocabulary  a small vocabulary to train with, a whole one to serve
attention   the scores written out, for CPUs
report      progress bar, JSONL log, loss curve
loop        optimiser, schedule, resumable steps, validation
options     the command-line flags both commands share
run         one run, from flags to a servable folder
pretrain    `python -m llm.train.pretrain`: a base model from text
sft         `python -m llm.train.sft`: an assistant from conversations
phrasing    the other ways a person may have asked
facts       `python -m llm.train.facts`: the default checkpoint's facts → chat JSONL
"""
