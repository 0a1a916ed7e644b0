"""A backend that is not part of dynamo: it answers with the words of the prompt in reverse order."""
