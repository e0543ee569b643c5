"""Phrases of the report, the comparison and the page that follows a run, in Chinese.

What a run wrote itself stays as it is: its objective, option names and values, what an alarm saw.
``chosen``, ``rejected`` and ``token`` are the field's words in Chinese texts, too.
"""

from __future__ import annotations

from collections.abc import Mapping

_PAGE: Mapping[str, str] = {
    "To the report": "跳到报告",
    "Parts of this report": "报告的各部分",
    "Written by {generator}. The page asks no network for anything.": (
        "由 {generator} 生成。本页不访问任何网络。"
    ),
    "The charts need JavaScript; everything else can be read without.": (
        "图表需要 JavaScript；其余内容没有它也能阅读。"
    ),
    "Show or hide": "显示或隐藏",
    "following": "跟随中",
    "Dark colours": "深色",
    "Light colours": "浅色",
    "the run cannot be read": "无法读取这次运行",
    "counterpoint watch has ended": "counterpoint watch 已结束",
    "Greatest: {value}, {row}, steps {left} to {right}.": (
        "最大：{value}，{row}，第 {left} 步到第 {right} 步。"
    ),
    "Did not move at some look: {rows}.": "某次查看时没有移动：{rows}。",
    "Every row moved at every look.": "每次查看时每一行都在移动。",
    "{name}: from {first} to {last} {unit}, most often {low} to {high}.": (
        "{name}：从 {first} 到 {last} {unit}，最常见的是 {low} 到 {high}。"
    ),
    "{name}: no finite value.": "{name}：没有有限的值。",
    "{name}: {value} at step {step}.": "{name}：第 {step} 步为 {value}。",
    "{name}: {first} at step {begin}, {last} at step {end}.": (
        "{name}：第 {begin} 步为 {first}，第 {end} 步为 {last}。"
    ),
    "{name}: {first} at step {begin}, {last} at step {end}; least {low} at {low_step}, "
    "greatest {high} at {high_step}.": (
        "{name}：第 {begin} 步为 {first}，第 {end} 步为 {last}；最小 {low}（第 {low_step} 步），"
        "最大 {high}（第 {high_step} 步）。"
    ),
    "step": "步",
    "steps": "步",
    "alarm": "警报",
    "{value} at {step}": "{value}，第 {step} 步",
    "{left} to {right}": "{left} 到 {right}",
    "{count} of {left} to {right}": "{count} 个在 {left} 到 {right} 之间",
}

_STORY: Mapping[str, str] = {
    "a run": "一次运行",
    "CPO, hinge loss (SLiC)": "CPO，合页损失（SLiC）",
    "CPO without its NLL term": "不带 NLL 项的 CPO",
    "an alarm that this version does not know": "这个版本不认识的警报",
    "It was raised by another version of Counterpoint.": "它由另一个版本的 Counterpoint 发出。",
    "counterpoint doctor --explain CODE of that version says what it means.": (
        "用那个版本的 counterpoint doctor --explain CODE 查看含义。"
    ),
    "1 step": "1 步",
    "{count} steps": "{count} 步",
    "1 alarm": "1 个警报",
    "{count} alarms": "{count} 个警报",
    "finished after {steps}": "完成，共 {steps}",
    "interrupted at step {step}{of}": "在第 {step} 步{of}被中断",
    "failed at step {step}{of}": "在第 {step} 步{of}失败",
    "stopped at step {step}{of}": "在第 {step} 步{of}停止",
    "running, at step {step}{of}{left}": "进行中，第 {step} 步{of}{left}",
    "ended at step {step}{of} without a word: killed, or cut off": (
        "在第 {step} 步{of}无声地结束：被杀掉，或被切断"
    ),
    "ended at step {step}{of}": "在第 {step} 步{of}结束",
    " of {steps}": "（共 {steps} 步）",
    ", about {time} left": "，约剩 {time}",
    "Failed": "失败",
    "It ended with an error.": "它因错误而结束。",
    "{said} {raised} before that.": "{said} 此前有 {raised}。",
    "step {step}": "第 {step} 步",
    "step {since}, seen at step {step}": "第 {since} 步起，第 {step} 步发现",
    "First {code}, {title}: from {at}.": "首先是 {code}，{title}：{at}。",
    "First {code}, {title}: from {at}; the run was stopped.": (
        "首先是 {code}，{title}：{at}；运行已停止。"
    ),
    "Nothing logged yet": "尚无记录",
    "No step has been written down so far.": "到目前为止没有写下任何一步。",
    "Cut off": "被切断",
    "No alarm in {steps}, but no end either: it was killed or cut off.": (
        "{steps}内没有警报，但也没有结束：被杀掉或被切断。"
    ),
    "Interrupted": "被中断",
    "Stopped": "已停止",
    "No alarm in {steps}.": "{steps}内没有警报。",
    "Healthy so far": "目前正常",
    "Healthy": "正常",
    "No alarm was raised in {steps}.": "{steps}内没有发出警报。",
    "Preference accuracy": "偏好准确率",
    "Log-probability of chosen": "chosen 的对数概率",
    "{seconds} s": "{seconds} 秒",
    "{minutes} min {seconds} s": "{minutes} 分 {seconds} 秒",
    "{hours} h {minutes} min": "{hours} 小时 {minutes} 分",
    "{days} d {hours} h": "{days} 天 {hours} 小时",
}

_REPORT: Mapping[str, str] = {
    "Alarms": "警报",
    "Curves": "曲线",
    "Samples": "样本",
    "What was trained": "训练了什么",
    "Trained": "训练",
    "Data": "数据",
    "What moved": "什么在移动",
    "Movement": "移动",
    "Speed and memory": "速度与内存",
    "Speed": "速度",
    "Environment": "环境",
    "Constraints": "约束",
    "from {before}": "起初 {before}",
    "{pairs} pairs a step": "每步 {pairs} 对",
    "1 more kind": "另有 1 种",
    "{count} more kinds": "另有 {count} 种",
    "Began at step {since}; raised at step {step}.": "始于第 {since} 步；第 {step} 步发出。",
    "Began at step {since}; raised at step {step}, {times} times up to step {last}.": (
        "始于第 {since} 步；第 {step} 步发出，到第 {last} 步共 {times} 次。"
    ),
    "Why it matters. ": "为什么重要：",
    "What to do. ": "怎么办：",
    "The run wrote no account of its data.": "这次运行没有写下数据的去向。",
    "The lengths of its pairs were not written down.": "没有写下各对的长度。",
    "Nothing was logged yet.": "尚无记录。",
    "Drag over a chart to look closer, at all of them at once; the button with the arrow goes "
    "back. Of long lines the extremes are kept, so that no spike is lost.": (
        "在图上拖动可以放大，所有图一起放大；带箭头的按钮还原。长曲线保留极值，不会丢掉尖峰。"
    ),
    "More curves": "更多曲线",
    "Nobody looked at how far the parameters moved.": "没有查看过参数移动了多少。",
    "At step {step}": "第 {step} 步",
    "Groups of parameters at step {step}": "第 {step} 步的参数组",
    "run time": "运行时间",
    "pairs a second, median": "每秒对数，中位数",
    "tokens a second, median": "每秒 token 数，中位数",
    "seconds a step, median": "每步秒数，中位数",
    "peak memory, MB": "峰值内存，MB",
    "The run logged neither speed nor memory.": "这次运行没有记录速度和内存。",
    "started": "开始",
    "taken up again": "继续",
    "at step {step}, {time}": "第 {step} 步，{time}",
    "ended": "结束",
    "versions": "版本",
    "command": "命令",
    "machine": "机器",
    "cpu": "处理器",
    "cores": "核数",
    "memory": "内存",
    "gpus": "显卡",
    "os": "操作系统",
    "installed": "安装方式",
    "The run wrote nothing about its environment.": "这次运行没有写下它的环境。",
    "Everything else in run.json": "run.json 中的其余内容",
    "The run wrote no samples.": "这次运行没有写下样本。",
    "More": "更多",
    "{count} prompts": "{count} 个提示",
    "{count} more prompts are in samples.jsonl.": "samples.jsonl 中还有 {count} 个提示。",
    "reference": "参考",
    "after step {step}": "第 {step} 步之后",
    "before training": "训练之前",
    "{count} tokens": "{count} 个 token",
    "{share} repetition": "{share} 重复",
    "did not end": "没有结束",
    "(empty)": "（空）",
    "{text} … ({count} more characters)": "{text} …（还有 {count} 个字符）",
    "The run did not write down its objective.": "这次运行没有写下目标函数。",
    "The run did not write down its options.": "这次运行没有写下选项。",
    "Options unlike their defaults": "与默认值不同的选项",
    "Options that matter": "重要的选项",
    "None: every option has its default.": "没有：所有选项都是默认值。",
    "All options": "全部选项",
    "The adapter": "适配器",
    "option": "选项",
    "value": "值",
}

_CURVES: Mapping[str, str] = {
    "training": "训练",
    "evaluation": "评估",
    "greedy": "贪心",
    "sampled": "采样",
    "Loss": "损失",
    "nats": "奈特",
    "nats a token": "奈特／token",
    "NLL of the chosen": "chosen 的 NLL",
    "Where it rises, the chosen completions become less likely than they were.": (
        "上升表示 chosen 回答变得比原来更不可能。"
    ),
    "share of pairs": "占各对的比例",
    "How often the chosen completion has the higher reward; 0.5 is chance.": (
        "chosen 回答奖励更高的比例；0.5 是随机水平。"
    ),
    "Reward margin": "奖励差距",
    "Log-probabilities": "对数概率",
    "nats a completion, or a token under mean rewards": ("奈特／回答；奖励取平均时为奈特／token"),
    "Where both fall while the margin rises, likelihood is displaced.": (
        "两者都下降而差距上升，就是似然位移。"
    ),
    "Rewards": "奖励",
    "Learning rate": "学习率",
    "Gradient norm": "梯度范数",
    "before clipping": "裁剪之前",
    "mean": "平均",
    "Load-balancing loss": "负载均衡损失",
    "Pairs a second": "每秒对数",
    "pairs": "对",
    "Tokens a second": "每秒 token 数",
    "tokens": "token",
    "Seconds a step": "每步秒数",
    "seconds": "秒",
    "Peak memory": "峰值内存",
    "Length of samples": "样本长度",
    "Repetition in samples": "样本中的重复",
    "share": "比例",
    "Samples that ended": "正常结束的样本",
    "Samples that are empty": "空的样本",
    "Exact matches": "完全匹配",
    "Distinct tokens": "不同的 token",
    "Distinct pairs of tokens": "不同的 token 对",
}

_MOVEMENT: Mapping[str, str] = {
    "How far each layer moved": "每层移动了多少",
    "norm of the change a step, over the norm of the weights": "每步变化的范数与权重范数之比",
    "Mean over the layer's tensors that train, from look to look. Grey: nothing moved.": (
        "该层参与训练的张量的平均，逐次查看。灰色：没有任何移动。"
    ),
    "Relative change by kind of parameter": "各类参数的相对变化",
    "A gap: nothing moved.": "空缺：没有任何移动。",
    "weights that moved": "移动过的权重",
    "since the look before": "自上次查看以来",
    "relative change a step": "每步相对变化",
    "stuck by precision": "因精度卡住",
    "gradient norm": "梯度范数",
    "parameters": "参数",
    "layer {number}": "第 {number} 层",
    "embeddings": "嵌入",
    "attention": "注意力",
    "norms": "归一化",
    "head": "输出头",
    "adapters": "适配器",
    "other": "其他",
}

_DATA: Mapping[str, str] = {
    "rows read": "读入的行",
    "kept": "保留",
    "dropped": "丢弃",
    "cut": "截断",
    "limits": "限制",
    "equal after cutting": "截断后相同",
    "nothing in column": "列中为空",
    "the chat template": "聊天模板",
    "{verb} {thing} of {place} in {rows} rows": "{verb}{place}的{thing}：{rows} 行",
    "drops": "丢掉",
    "changes": "改变",
    "repeats": "重复",
    "the system turn": "系统轮",
    "content": "内容",
    "thoughts": "思考",
    "tool calls": "工具调用",
    "tool results": "工具结果",
    "the tools": "工具",
    "white space": "空白",
    "the prompt": "提示",
    "digest": "摘要",
    "none": "无",
    "nothing": "无",
    "What became of the rows": "各行的去向",
    "{name}: {kept} of {rows} rows": "{name}：{rows} 行中的 {kept} 行",
    "Lengths, {name}": "长度，{name}",
    "{tokens} {part} tokens in {rows} rows": "{rows} 行中 {part} 的 {tokens} 个 token",
    "bound": "界限",
    "last quarter": "最后四分之一",
    "held out": "评估集",
    "steps that held": "满足的步",
    "at the cap": "达到上限",
    "rule": "规则",
    "raw": "原始",
    "smoothed": "平滑",
    "{name}: value and bound": "{name}：值与界限",
    "{name}: violation": "{name}：违反量",
    "value − bound": "值 − 界限",
    "At or below 0 the bound holds.": "不大于 0 时满足界限。",
    "{name}: multiplier": "{name}：乘子",
    "loss per unit of value": "每单位值的损失",
    "What the bound costs: 0 where it holds by itself.": "界限的代价：自然满足时为 0。",
    "{name}: nothing was measured.": "{name}：没有测量到任何值。",
    "{name} was held": "{name} 得到满足",
    "{name} was held as far as chance lets one tell": "{name} 在随机波动所能分辨的范围内得到满足",
    "{name} was not held": "{name} 没有得到满足",
    "{name} is above its bound, in too few log lines to tell it from chance": (
        "{name} 超出界限，但日志行太少，无法与随机波动区分"
    ),
    "{held}: in the last quarter of the run the training estimate was {value}, the bound "
    "{bound}.": ("{held}：在运行的最后四分之一，训练估计为 {value}，界限为 {bound}。"),
    " On {where} it was not a finite number.": "在 {where} 上它不是有限的数。",
    " On {where} it is {value}, at or below the bound.": "在 {where} 上为 {value}，不超过界限。",
    " On {where} it is {value}, {excess} above the bound.": (
        "在 {where} 上为 {value}，超出界限 {excess}。"
    ),
    "{bound} ({times} × initial)": "{bound}（{times} × 初值）",
    "{update}, rate {rate}, multiplier from {start}": "{update}，速率 {rate}，乘子从 {start} 开始",
    "multiplier": "乘子",
    "{share} (cap {cap})": "{share}（上限 {cap}）",
}

_COMPARISON: Mapping[str, str] = {
    "Comparison": "比较",
    "{count} runs side by side": "{count} 次运行并排",
    "{first} and {last}": "{first} 和 {last}",
    "run": "运行",
    "method": "方法",
    "state": "状态",
    "time": "时间",
    "verdict": "结论",
    "The runs": "各次运行",
    "{headline}. {sentence}": "{headline}。{sentence}",
    "What differs": "有何不同",
    "Results": "结果",
    "Objective": "目标函数",
    "Options": "选项",
    "Machine and versions": "机器与版本",
    "The same in all of them.": "全都相同。",
    "{title}: what differs": "{title}：有何不同",
    "The best of each row is bold, where one can say what is better.": (
        "能判断好坏时，每行最好的值用粗体。"
    ),
    "last value": "最后的值",
    "Last values, {name}": "最后的值，{name}",
    "None of the runs has logged anything yet.": "各次运行都还没有记录。",
    "Drawn over": "横轴",
    "pairs seen": "见过的对",
    "hours": "小时",
}

REPORT: Mapping[str, str] = {
    **_PAGE,
    **_STORY,
    **_REPORT,
    **_CURVES,
    **_MOVEMENT,
    **_DATA,
    **_COMPARISON,
}
"""English -> Chinese."""
