"""From a command line to a job: compose, check, build, train, export."""
