"""The doctor's codes in English: title, why it hurts, what to do.

Titles of errors are those of ``errors.CODES``. Not here: severities (``table``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from counterpoint.errors import CODES

_ERRORS: dict[str, tuple[str, str]] = {
    "CP101": (
        "An option that nothing reads would leave the run as it was.",
        "Correct the name; counterpoint train --help lists all of them.",
    ),
    "CP102": (
        "There is no such choice, so it is not known what is meant.",
        "Take one of the words listed.",
    ),
    "CP103": (
        "The value has no meaning for this option.",
        "Give a value in the range that the message states.",
    ),
    "CP104": (
        "Only one of the two could be obeyed, and the other would be ignored in silence.",
        "Keep the one you mean.",
    ),
    "CP105": (
        "The option would do nothing here, or something else than its name says.",
        "Remove it; docs/options.md names what takes its place.",
    ),
    "CP106": ("No option can be read from it.", "Repair the file at the line named."),
    "CP107": ("The run cannot be defined without it.", "Give the option named."),
    "CP201": (
        "Without it there are no pairs to prefer between.",
        "Rename the column, or turn scored candidates into pairs first.",
    ),
    "CP202": ("Such a row is no preference.", "Repair or remove the rows."),
    "CP203": (
        "An empty answer teaches to end at once, and its mean log-probability is undefined.",
        "Remove the rows, or drop them with invalid_rows.",
    ),
    "CP204": (
        "A prompt that fills the budget leaves nothing to train on.",
        "Raise max_length, or let truncation cut the prompt.",
    ),
    "CP205": (
        "Equal completions have no gradient of preference; they come from ties in scoring.",
        "Remove the rows, or drop them with invalid_rows.",
    ),
    "CP206": (
        "Two answers to different questions cannot be compared.",
        "Remove the rows, or give the prompt in a column of its own.",
    ),
    "CP207": (
        "What the user or a tool said would be trained as an answer.",
        "Cut the conversations so that they end with the assistant's turn.",
    ),
    "CP208": (
        "Messages can only become tokens through a template.",
        "Use the tokenizer of an instruction-tuned model, or give a chat_template.",
    ),
    "CP209": ("There is nothing to train on.", "Check the path and the messages about rows."),
    "CP210": ("Rows behind the damage would be missing.", "Write or download the file again."),
    "CP211": ("There is nothing to train on.", "Correct the path, the hub id or the split."),
    "CP212": (
        "A weight below 0 would train towards the rejected answer; a number that is not finite "
        "ends the run.",
        "Repair or remove the column.",
    ),
    "CP213": (
        "The row cannot become text, or loses what sets its two sides apart.",
        "Change the rows or the template.",
    ),
    "CP214": (
        "Log-probability needs a token before the first one that is scored.",
        "Give the row a prompt, or use a tokenizer with a BOS token.",
    ),
    "CP216": (
        "No model reads so long a text, and preparing it takes memory and hours.",
        "Cut or remove the rows.",
    ),
    "CP217": (
        "A template is a program; one that never ends would hold the run for ever.",
        "Look at the template, or give another with chat_template.",
    ),
    "CP219": (
        "The answers are about something that the model never gets to see.",
        "Remove the rows, or the column if the answers do not need it.",
    ),
    "CP218": (
        "A folder from elsewhere could make the run read any file of this machine.",
        "Name the file itself, or copy it into the folder.",
    ),
    "CP221": (
        "The completions would open a second turn, or the model would not see how its own began.",
        "Use a template that writes the turn, or move its text to the completions.",
    ),
    "CP222": (
        "Memory, a file or a package failed while a row was prepared; another try may succeed.",
        "Try again, with more memory or fewer processes; nothing was dropped or kept in the cache.",
    ),
    "CP223": (
        "A column is all text or all lists; this cell would be trained as the text that it is.",
        "Repair the cell, or write JSON lines, where a list is a list.",
    ),
    "CP224": (
        "numpy writes no commas between messages, so that nobody can tell where one ends.",
        "Write JSON lines, or turn arrays into lists with .tolist() before writing CSV.",
    ),
    "CP226": (
        "Another answer than the row's would be trained: a model that thinks learns not to.",
        "Use a template or an argument of it that keeps it, or take it out of the rows.",
    ),
    "CP301": ("There is nothing to train.", "Correct the name, or complete the folder."),
    "CP302": (
        "Without it no completion learns to end, and generation never stops.",
        "Name the token that ends a turn.",
    ),
    "CP303": (
        "The lookup of such a token fails, on an accelerator without a readable message.",
        "Resize the embedding, or use the model's own tokenizer.",
    ),
    "CP304": (
        "Log-probabilities are computed at the head.",
        "Use a causal language model of transformers.",
    ),
    "CP305": ("The run would end with the model it began with.", "Unfreeze weights, or adapt."),
    "CP306": (
        "Its log-probabilities are not those of a decoder that reads text from left to right.",
        "Use a decoder-only text model.",
    ),
    "CP307": ("No layer would get an adapter.", "Name layers that the model has, or all-linear."),
    "CP308": (
        "One such weight makes every loss NaN.",
        "Download or convert the model again; a conversion to float16 overflows above 65,504.",
    ),
    "CP310": (
        "A pickle is a program that runs when it is opened.",
        "Save the weights as safetensors, or set allow_pickle if you trust whoever made them.",
    ),
    "CP311": (
        "The code would run with all your rights.",
        "Read it, then set trust_remote_code; or use a model that transformers knows.",
    ),
    "CP315": (
        "To build it takes hours or all of the memory, before anything is found wrong.",
        "Compare config.json with the model's page; load it again, or leave it alone.",
    ),
    "CP312": (
        "No row with such a text can be trained on, and each costs seconds.",
        "Look at the regular expressions in tokenizer.json, or use another tokenizer.",
    ),
    "CP501": ("Nothing of the run could be kept.", "Choose another output_dir."),
    "CP502": (
        "The run cannot work, or is not safe, without it.",
        "Install it with the command named.",
    ),
    "CP504": (
        "The logs and checkpoints of two runs would mix.",
        "Choose another output_dir, resume, or overwrite.",
    ),
}

_OPTIONS: dict[str, tuple[str, str, str]] = {
    "CW101": (
        "an NLL term that the named loss does not have",
        "SimPO and RePO are published without it; with cpo_alpha, whose default is TRL's 1, the "
        "objective is CPO-SimPO, and results are not comparable.",
        "Set cpo_alpha to 0 for the published loss; CPO-SimPO takes 0.05.",
    ),
    "CW102": (
        "a loss without the NLL term that it is published with",
        "Without it the likelihood of the chosen completion may fall together with the rejected "
        "one's. CPO's ablation loses 2 points of KIWI-XXL (arXiv:2401.08417).",
        "Set cpo_alpha to 1.",
    ),
    "CW103": (
        "a beta far from every published one of this loss",
        "Beta for sums of log-probabilities (0.1) and for means (2 to 10) differ by the length "
        "of a completion; the wrong one gives almost no gradient, or saturates.",
        "Take the beta of a published setting.",
    ),
    "CW104": (
        "a margin far from every published one, as a multiple of beta",
        "SimPO's gamma counts in units of beta: published ratios are 0.1 to 0.8. A larger one asks "
        "for gaps that no model reaches; 0 is no SimPO.",
        "Set gamma_beta_ratio, which stays right when beta changes.",
    ),
    "CW105": (
        "a learning rate at which preference losses degenerate",
        "Models trained in full degenerate above 1e-5: repetition, gibberish. Adapters stand more, "
        "but no published one went near 1e-3.",
        "Take the learning rate of a published setting.",
    ),
    "CW106": (
        "a learning rate that hardly moves what it trains",
        "A fresh adapter starts at zero effect and needs rates around 1e-4; rates meant for all "
        "weights leave it there.",
        "Raise the learning rate.",
    ),
    "CW107": (
        "AlphaPO with alpha 0 is SimPO",
        "The reward is then the log-probability itself, so the name says more than the run does.",
        "Set alpha, to 0.1 for example, or loss_type to simpo.",
    ),
    "CW108": (
        "a reward that overflows, or is flat, at the log-probabilities seen",
        "(1 - p^-alpha) / alpha grows with the exponential of alpha x log-probability: above 709 "
        "it is infinite, far below 0 it has no slope.",
        "Bring alpha nearer to 0, or use loss_type alphapo, which takes means over tokens.",
    ),
    "CW109": (
        "an option that does nothing in this run",
        "It reads as if it shaped the run, and does not.",
        "Remove it, or turn on what it belongs to.",
    ),
    "CW121": (
        "more pairs in a step than the data set has",
        "A step then is a whole epoch, and fewer pairs than asked for.",
        "Lower gradient_accumulation_steps.",
    ),
    "CW122": (
        "a last step of each epoch with few pairs",
        "It moves the weights as far as a full step, on the noise of a few pairs.",
        "Choose pairs per step that leave a larger rest, or drop it with dataloader_drop_last.",
    ),
    "CW123": (
        "a warm-up that takes more than half of the run",
        "The learning rate stays below the one given for most of the run, or never reaches it.",
        "Shorten the warm-up; a value below 1 is a share of the steps.",
    ),
    "CW124": (
        "pairs per step far from the published 128",
        "Published learning rates belong to steps of 128 pairs; much smaller steps are noisier, "
        "much larger ones are few.",
        "Change gradient_accumulation_steps; the micro-batch stays as it is.",
    ),
    "CW125": (
        "something that is to happen at a step the run does not reach",
        "No checkpoint, evaluation or log line will be written before the end.",
        "Lower it below the number of steps; a value below 1 is a share of them.",
    ),
    "CW126": (
        "rows that are never trained on",
        "dataloader_drop_last leaves out the rest of each epoch, here a large part of it.",
        "Turn dataloader_drop_last off, or make steps smaller.",
    ),
    "CW127": (
        "an option by the name of an earlier release",
        "It is taken as the option that it is today, or left out where it means nothing here.",
        "Write it as the message says.",
    ),
    "CW128": (
        "a checkpoint that does not say what its adapter was trained on",
        "Releases up to 0.4 did not note it: whether the base is still the same cannot be seen.",
        "Nothing, if you know that it is; the next checkpoint notes it.",
    ),
    "CN121": (
        "steps",
        "How many pairs make a step, and how many steps the run has.",
        "Nothing, if it is what you mean.",
    ),
}

_DATA: dict[str, tuple[str, str, str]] = {
    "CW201": (
        "completions that differ only in white space or Unicode form",
        "Nobody prefers one to the other; the model learns to tell spaces apart.",
        "Remove the rows, unless white space is what is being taught.",
    ),
    "CW202": (
        "rows that are there more than once",
        "They count as often as they occur, and leak between training and evaluation splits.",
        "Remove the copies, or give one row a weight.",
    ),
    "CW203": (
        "prompts with more than one row",
        "Fine where each row has completions of its own; a random split leaks between sets.",
        "Split training and evaluation by prompt.",
    ),
    "CW204": (
        "pairs that contradict each other",
        "The same two completions are preferred both ways: their gradients cancel.",
        "Keep the majority's verdict, or remove both.",
    ),
    "CW205": (
        "preferences that go round in a circle",
        "A over B, B over C, C over A: no model satisfies all of them.",
        "Remove the weakest pair of the circle.",
    ),
    "CW206": (
        "a completion that begins with the whole other one",
        "Only the rest decides, which often is a cut-off or a disclaimer: the model learns length.",
        "Look at the rows; remove those cut by accident.",
    ),
    "CW207": (
        "a chosen completion that repeats its prompt",
        "The model learns to echo questions.",
        "Cut the prompt off the completions.",
    ),
    "CW208": (
        "many rows are cut to max_length",
        "A cut completion has no end to learn from; where the cut falls, the preference may lie.",
        "Raise max_length.",
    ),
    "CW209": (
        "rows whose completions are equal after cutting",
        "They cost time and teach nothing.",
        "Raise max_length, or drop long rows with truncation.",
    ),
    "CW210": (
        "tokens that merge over the end of the prompt",
        "The boundary moves back to the last whole token, so the prompt that is trained is not the "
        "one that is typed. A prompt that ends with a space does this.",
        "Move spaces from the end of prompts to the start of completions.",
    ),
    "CW211": (
        "length predicts which completion is preferred",
        "The cheapest thing to learn then is length.",
        "Balance the data, or use a loss that takes means over tokens, as simpo does.",
    ),
    "CW212": (
        "evaluation rows that are nearly rows of the training set",
        "What is evaluated then is memory.",
        "Remove them from one of the sets.",
    ),
    "CW213": (
        "chosen and rejected written in different scripts",
        "The language then gives the answer away; often one side is in the wrong language.",
        "Look at the rows, unless the language is what is being taught.",
    ),
    "CW214": (
        "what looks like a secret in the text",
        "A model can repeat what it was trained on, and a run's log may quote it.",
        "Remove the keys from the data, and revoke them.",
    ),
    "CW215": (
        "rows of weight 0",
        "They are read and count as rows, and teach nothing.",
        "Remove them, or the column.",
    ),
    "CW216": (
        "a chat template that leaves out what rows say",
        "The model answers without it. Thoughts of earlier turns are left out by many templates, "
        "and then where the model is used too; a system turn, tools or what was asked are not.",
        "Nothing, if the model is used so; else another template, or its argument that keeps it.",
    ),
    "CW217": (
        "a chat template that changes what rows say",
        "What is trained is not what the rows hold. White space at the ends of turns is the usual "
        "case, and harmless unless it is to be learned.",
        "Take the white space out of the rows, or use a template that leaves texts as they are.",
    ),
    "CW218": (
        "a chat template that repeats what rows say once",
        "The model reads it twice where it is trained, and perhaps not where it is used.",
        "Use a template that writes it once.",
    ),
    "CW219": (
        "prompts of which more than a third is cut",
        "The model learns to answer what it does not get to see.",
        "Raise max_length, or drop long rows with truncation.",
    ),
    "CW220": (
        "text that spells messages",
        "Lists of messages became text on their way, as in a CSV file that was read by pandas; the "
        "model learns brackets and quotes, and no chat template is used.",
        "Give lists, or the CSV file itself, whose columns of lists are read. If text is meant, "
        "nothing.",
    ),
    "CN201": (
        "the data set",
        "Rows, tokens and a digest of the content, to tell later what was trained on.",
        "Nothing.",
    ),
    "CN202": (
        "lengths",
        "How many rows are how long, in tokens before any cut.",
        "Nothing, if it is what you expect.",
    ),
    "CN203": (
        "completions that refuse to answer",
        "Where chosen refuses more often than rejected, the model learns to refuse.",
        "Nothing, if it is what you mean.",
    ),
    "CN204": (
        "a stream was examined at its beginning only",
        "Later rows may hold what the first ones do not.",
        "Nothing; without streaming all rows are examined.",
    ),
}

_MODEL: dict[str, tuple[str, str, str]] = {
    "CN301": (
        "no pad token",
        "Padding then is filled with EOS. It does no harm here, where labels go by length, but "
        "tools that mask by id later hide EOS.",
        "Set tokenizer.pad_token to a token that no text has.",
    ),
    "CN302": (
        "the pad token is EOS",
        "It does no harm here, where labels go by length; trainers that mask labels by id hide "
        "EOS, and their models never learn to stop.",
        "Set tokenizer.pad_token to a token that no text has.",
    ),
    "CW303": (
        "a BOS token that is trained on and not generated with",
        "Training puts one BOS first, but neither the tokenizer nor the template writes it when "
        "the model is used.",
        "Let the tokenizer add it, or set bos_token to null.",
    ),
    "CW304": (
        "BOS twice at the start",
        "The text holds BOS and the tokenizer adds another. Training keeps one; whoever uses the "
        "model as the data were made does not.",
        "Remove BOS from the texts or the template, or tokenize with add_special_tokens=False.",
    ),
    "CW305": (
        "messages that hold the marks of a template already",
        "The template is applied twice: the model learns to write the marks as text.",
        "Give the bare messages, or the rendered text without roles.",
    ),
    "CW306": (
        "texts rendered with the template of another model",
        "The marks are not tokens of this tokenizer; it spells them out in pieces.",
        "Give messages, and let the tokenizer's own template render them.",
    ),
    "CW307": (
        "a template that does not end the assistant's turn with EOS",
        "EOS is put after what the template writes. Generation then waits for a token that a "
        "chat never showed before.",
        "Set eos_token to the token that ends a turn in the template.",
    ),
    "CW308": (
        "a tokenizer with more tokens than the model's embedding",
        "No row uses them yet; the first that does fails.",
        "Resize the embedding: model.resize_token_embeddings(len(tokenizer)).",
    ),
    "CW309": (
        "a slow tokenizer",
        "It is many times slower than a fast one, and texts cannot be cut into pieces.",
        "Convert it: AutoTokenizer.from_pretrained(..., use_fast=True).",
    ),
    "CW310": (
        "EOS in the middle of completions",
        "The model learns to go on after the end.",
        "Remove EOS from the texts; one is put at the end of each completion.",
    ),
    "CW311": (
        "the EOS token is the unknown token",
        "The vocabulary does not have it: every unknown word would end the text.",
        "Name a token that the vocabulary has.",
    ),
    "CW321": (
        "weights that are all the same",
        "A matrix of one value carries nothing; the file may be incomplete.",
        "Compare with the original model.",
    ),
    "CW322": (
        "weights that look as they did before any training",
        "Preference losses refine a model that can speak already.",
        "Start from a trained model, or fine-tune it first.",
    ),
    "CW323": (
        "weights that are frozen though all are to be trained",
        "They stay as they are; a run without an adapter usually means all of them.",
        "Unfreeze them, or use an adapter.",
    ),
    "CW324": (
        "names of layers for the adapter that match nothing",
        "Fewer layers are adapted than the configuration says.",
        "Correct the names.",
    ),
    "CW325": (
        "weights that cannot move",
        "A step of Adam is about the learning rate; below half a unit in the last place of a "
        "weight it rounds away, step after step.",
        "Keep the weights in float32; bf16 still computes in bfloat16.",
    ),
    "CW326": (
        "dropout is on",
        "Chosen and rejected see different noise, which the difference of their log-probabilities "
        "adds up; prompts cannot be shared.",
        "Set disable_dropout to true, as is the default.",
    ),
    "CW327": (
        "a first NLL near that of guessing",
        "The model knows nothing of these texts: wrong weights, wrong tokenizer, or no training.",
        "Check model and tokenizer, or fine-tune on the chosen completions first.",
    ),
    "CN321": (
        "the model, and the layout of its batches",
        "Which attention is used, and whether prompts are shared between completions.",
        "Nothing, if it is what you expect.",
    ),
    "CN322": (
        "what the model says of the first pairs",
        "Log-probabilities before any step.",
        "Nothing, if it is what you expect.",
    ),
}

_ALARMS: dict[str, tuple[str, str, str]] = {
    "CW421": (
        "the chosen completions lose likelihood while the margin grows",
        "The loss sees the difference only: it may push both completions down, the rejected one "
        "further, and what gains are texts that nobody chose.",
        "Raise cpo_alpha, which holds the chosen completions; or lower the learning rate or beta.",
    ),
    "CW422": (
        "the NLL of the chosen completions far above its start",
        "The model forgets how to write what is preferred, and the preference gains nothing by it.",
        "Lower the learning rate; if it is low already, look at the data from where it began.",
    ),
    "CW423": (
        "a margin that has collapsed",
        "What was learnt of the preference is being lost again.",
        "Lower the learning rate, and go on from a checkpoint before the collapse.",
    ),
    "CW424": (
        "training accuracy below chance, and not rising",
        "The model prefers the rejected completions and does not learn otherwise: the rate is too "
        "low for it, or sums of log-probabilities measure length.",
        "Compare a few rows by eye; then raise the learning rate, or use a loss that takes means "
        "over tokens, as simpo does.",
    ),
    "CW425": (
        "a spike in the loss",
        "A few such steps can undo many good ones; often they hold broken rows, or the learning "
        "rate is too high.",
        "Lower the learning rate, and look at the rows of the steps around it.",
    ),
    "CW426": (
        "a spike in the norm of the gradient",
        "Unclipped it moves the weights further than all steps around it; clipped, that step "
        "follows one pair alone.",
        "Clip with max_grad_norm near the usual norm, or lower the learning rate.",
    ),
    "CW427": (
        "training pairs and evaluation pairs that contradict each other",
        "What the model learns to prefer is what the evaluation set rejects: in one of the two, "
        "chosen and rejected are probably swapped.",
        "Read a few rows of both, and swap the columns of the one that is wrong.",
    ),
    "CW428": (
        "a loss above where it began",
        "Training makes its own objective worse: it diverges.",
        "Lower the learning rate, or lengthen the warm-up.",
    ),
    "CW431": (
        "samples that repeat themselves",
        "The usual end of a preference loss without enough to hold it: repetition, then gibberish.",
        "Go back to an earlier checkpoint; raise cpo_alpha or lower the learning rate.",
    ),
    "CW432": (
        "samples that are empty",
        "The model ends its turn at once; short completions win where sums are compared.",
        "Go back to an earlier checkpoint, lower the learning rate, and look at the lengths of "
        "chosen and rejected.",
    ),
    "CW433": (
        "samples that run away in length",
        "The model has learnt that longer is better, or no longer writes its end.",
        "Balance lengths in the data, see that completions end with EOS, or lower the learning "
        "rate.",
    ),
}

_MACHINE: dict[str, tuple[str, str, str]] = {
    "CW441": (
        "a bound that no policy within reach holds",
        "The multiplier is at its cap and the value still above the bound: the run is spent on a "
        "constraint that it cannot meet, and little on the preferences.",
        "Loosen the bound: the run's log says which value was reached. Or raise the cap, if a "
        "larger multiplier is meant.",
    ),
    "CW442": (
        "a multiplier that oscillates",
        "Multiplier and weights chase each other: the bound is passed one way and then the other.",
        "Halve the constraint's rate, or double its proportional, which damps.",
    ),
    "CW444": (
        "a bound that was not held",
        "The training estimate was above the bound to the end, so the model is not what the "
        "constraint promises.",
        "Double the rate, start the multiplier higher (start), train longer, or loosen the bound.",
    ),
    "CW445": (
        "a bound that holds on the training pairs alone",
        "Multipliers see training pairs; on others the value is above the bound, as with any "
        "overfitting.",
        "Tighten the bound by as much as the held-out value is above it, or train for fewer "
        "epochs.",
    ),
    "CN443": (
        "a constraint that does nothing",
        "Its multiplier is 0 and its bound holds by itself, so the run is as it would be without.",
        "Leave it out, or tighten its bound if it should shape the model.",
    ),
    "CW501": (
        "a precision that this device does not suit",
        "float16 overflows above 65,504 and loses small gradients; bfloat16 on a CPU without "
        "support for it is slower than float32.",
        "Choose the precision that the device is made for.",
    ),
    "CW502": (
        "a large model without an accelerator",
        "A step on a CPU then takes minutes or longer.",
        "Use an accelerator, or a smaller model.",
    ),
    "CW503": (
        "not enough disk for the checkpoints",
        "The run ends when the disk is full, in the middle of a save.",
        "Keep fewer checkpoints, save the model only, or choose another disk.",
    ),
    "CW504": (
        "less memory than a step needs",
        "Memory runs out in the first steps, or the system ends the run.",
        "counterpoint plan says what takes how much, and what to turn on, cheapest first.",
    ),
    "CN501": ("the machine", "Device and precision of the run.", "Nothing, if it is so meant."),
    "CW901": (
        "a check of the doctor that failed itself",
        "This is a bug of the doctor; the other checks are not affected.",
        "Report it with the message.",
    ),
}

_MOVEMENT: dict[str, tuple[str, str, str]] = {
    "CW411": (
        "nothing that should train moves",
        "The run costs what training costs and leaves the model as it was, while the loss is "
        "logged as if nothing were wrong.",
        "Raise the learning rate; see that the schedule leaves 0, and that an optimizer of your "
        "own holds the parameters that the model has now.",
    ),
    "CW412": (
        "an adapter that is byte for byte what it was",
        "Of these modules nothing is learnt: what would be saved is what training began with.",
        "See that the model runs them and that nothing cuts them off from the loss, or leave them "
        "out of the adapter's target modules.",
    ),
    "CW413": (
        "a tensor that should train and never has a gradient",
        "The loss does not depend on it, or something on the way detaches it: it stays as it is.",
        "Look for detach(), no_grad() or .data behind it, and freeze it if it is meant to stay.",
    ),
    "CW414": (
        "weights stuck by their precision",
        "Their updates are below half a unit in the last place and round away, step after step.",
        "Keep the weights in float32, set stochastic_rounding, or raise the learning rate.",
    ),
    "CW415": (
        "a frozen tensor that changed",
        "What is frozen is taken for the model that everybody has: an adapter trained beside it "
        "no longer fits that model.",
        "Find what writes to it (an edit in place, a callback, an adapter that is merged and "
        "unmerged, memory shared with a tensor that trains), or unfreeze it.",
    ),
}

ENGLISH: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        **{code: (CODES[code], *texts) for code, texts in _ERRORS.items()},
        **_OPTIONS,
        **_DATA,
        **_MODEL,
        **_ALARMS,
        **_MACHINE,
        **_MOVEMENT,
    }
)
"""Code -> (title, why, what to do)."""
