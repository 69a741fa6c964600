"""Standard evaluation of language models: questions with examples before them, and the tasks of lm-eval."""
