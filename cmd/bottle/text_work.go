package main

const (
	textCpLong = `Copy a file or a directory between the host and a running bottle, as docker cp does.
Paths in the bottle are relative to its root. A directory is copied with its name into
an existing directory, and to a new name otherwise; of SOURCE/. only the content is
copied.

Files on the host are read and written with the rights of the user who runs bottle,
those in the bottle with the agent's. Of what comes from the bottle, git's directories,
links that lead out, devices and the like are left out.`
	textCpExample = `  sudo bottle cp impl:/workspace/report.pdf .
  sudo bottle cp ./data/. impl:/workspace/data`
	textCpArgs = "expected a path of the host and one of a bottle"
	hintCp     = "bottle cp NAME:PATH DEST, or bottle cp SOURCE NAME:PATH; a path of the host that contains a colon begins with ./"
)
