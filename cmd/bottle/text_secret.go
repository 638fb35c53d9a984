package main

const (
	textSecretLong = `Replace the value of a variable that the proxy injects (inject in the manifest), such
as a token that was renewed. It is asked for without echo, or read from standard input if
that is not a terminal; one trailing line break is removed. The agent keeps its
placeholder, and requests that begin when the command returns get the new value. Former
values are still replaced in responses.`
	textSecretExample = `  bottle secret set impl GH_TOKEN
  gh auth token | bottle secret set impl GH_TOKEN`
	textRunAgain   = ", run again within %s"
	textNotRenewed = "The secret %s could not be renewed: %s"
	textSecretArgs = "expected a bottle name and a variable"
	textSecretSet  = "Requests of %[2]s now get the new %[1]s."
)
