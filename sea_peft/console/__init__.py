"""The terminal: flags that verbs share, where output goes, progress and tables. Only
`sea_peft.cli` imports it.
"""
