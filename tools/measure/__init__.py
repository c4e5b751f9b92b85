"""Programs that measure speed, memory and behaviour. The guides and CONTRIBUTING.md quote their results."""
