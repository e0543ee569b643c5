"""Phrases in Chinese, by the English that the code holds.

Fields in braces are the same on both sides; a test compares them, and finds every phrase that the
code says and that is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from counterpoint.language.chinese_report import REPORT

_DOCTOR = {
    "error": "错误",
    "warning": "警告",
    "note": "提示",
    "seen": "现象",
    "why": "原因",
    "do": "处理",
    "paste": "粘贴",
    "code": "代码",
    "severity": "级别",
    "what is so": "情况",
    "{errors} errors, {warnings} warnings, {notes} notes": (
        "{errors} 个错误，{warnings} 个警告，{notes} 个提示"
    ),
    "rows {rows}": "第 {rows} 行",
}

_NOTEBOOK = {
    "{count} more": "另有 {count} 行",
    "{count} more, and others": "另有 {count} 行，以及其他",
    "of the run": "内容",
    "model": "模型",
    "objective": "目标函数",
    "unknown": "未知",
    "{state}, step {step}": "{state}，第 {step} 步",
    "no end yet": "尚未结束",
    "finished": "完成",
    "interrupted": "被中断",
    "failed": "失败",
    "stopped": "停止",
    "log lines": "日志行",
    "metric": "指标",
    "first": "最初",
    "last": "最后",
    "since": "始于",
    "the same: all {count} tensors hold the same values": "相同：全部 {count} 个张量的值都一样",
    "{moved} of the {count} tensors of both differ": "两边共有的 {count} 个张量中 {moved} 个不同",
    "another shape: {before}, then {after}": "形状不同：先 {before}，后 {after}",
    "only before": "只在前者",
    "only after": "只在后者",
    "group": "组",
    "tensors": "张量",
    "tensor": "张量",
    "weights": "权重",
    "moved": "移动过",
    "update": "相对变化",
    "largest": "最大变化",
    "not compared": "未比较",
    "{weights} weights, {trained} trained, {precision}; {layout} layout; {pairs} pairs a "
    "step; {usable} to plan with": (
        "{weights} 个权重，训练 {trained} 个，{precision}；{layout} 布局；每步 {pairs} 对；"
        "可用 {usable}"
    ),
    "pairs of the micro-batch": "微批的对数",
    "tokens of it": "其 token 数",
    "peak": "峰值",
    "fits": "放得下",
    "too much": "放不下",
    "optimizer": "优化器",
    "initial policy": "初始策略",
    "exchange between ranks": "进程间交换",
    "gradients": "梯度",
    "activations": "激活",
    "backward at hand": "反向传播中",
    "at the worst moment": "最吃紧时",
    "as configured": "按当前配置",
    "longest pair": "最长的一对",
    "a device": "每设备",
    "accumulated": "累积",
    "ranks": "进程",
    "most tokens": "最多 token",
    "turn on": "打开",
    "cost": "代价",
    "status": "状态",
    "ok": "通过",
    "not applicable": "不适用",
    "check": "检查",
}

_COMMAND = {
    "What to do: {do}": "怎么办：{do}",
}

_QUICKSTART = {
    "Counterpoint's quickstart: English number words into German, learnt from pairs\n"
    "of translations of which even the better one is seldom right.\n": (
        "Counterpoint 快速上手：把英语数词译成德语，从成对的译文中学习，\n"
        "其中较好的一个也很少完全正确。\n"
    ),
    "model and tokenizer": "模型与分词器",
    "{count} parameters, in the package": "{count} 个参数，随包附带",
    "options": "选项",
    "data": "数据",
    "trainer": "训练器",
    "train": "训练",
    "CPOTrainer; it minimises": "CPOTrainer，最小化",
    "twice from the same model, the same pairs and steps": (
        "从同一个模型、用同样的数据对和步数各训练一次"
    ),
    "{steps} steps of {pairs} pairs, learning rate {rate}": (
        "{steps} 步，每步 {pairs} 对，学习率 {rate}"
    ),
    "{count} pairs; chosen has fewer flaws than rejected": (
        "{count} 对；chosen 的缺陷比 rejected 少"
    ),
    "and has none in {share} of them. For example": "其中 {share} 毫无缺陷。例如",
    "supervised": "监督",
    "translating numbers": "正在翻译数词",
    "chosen preferred {share}": "偏好 chosen {share}",
    "{count} numbers that no training has seen, translated": "{count} 个训练中从未出现的数，译文",
    "base model": "基础模型",
    "supervised on the chosen, {steps} steps": "只用 chosen 监督训练，{steps} 步",
    "CPO on the pairs, {steps} steps": "用数据对做 CPO，{steps} 步",
    "exact match": "完全正确",
    "right number": "数值正确",
    "perfect among the chosen references": "chosen 参考译文中完全正确的",
    "(right number: exact, or wrong only in ways that the references are)": (
        "（数值正确：完全正确，或只有参考译文也有的那些缺陷）"
    ),
    "right": "正确",
    "another number": "别的数",
    "{count} flaws": "{count} 处缺陷",
    "1 flaw": "1 处缺陷",
    "base": "基础",
    "model and run": "模型与运行",
    "data, config": "数据与配置",
    "look at it": "查看报告",
    "that needs": "需要先装",
    "next, the same run with another loss": "接下来，换一种损失再训练一次",
}

PHRASES: Mapping[str, str] = MappingProxyType(
    {**_DOCTOR, **_NOTEBOOK, **_COMMAND, **_QUICKSTART, **REPORT}
)
"""English -> Chinese."""
