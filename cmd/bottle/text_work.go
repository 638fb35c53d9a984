package main

const (
	textCpLong = `Copy a file or a directory between the host and a bottle, as docker cp does.
Paths in the bottle are relative to its root. A directory is copied with its name into
an existing directory, and to a new name otherwise; of SOURCE/. only the content is
copied.

Files on the host are read and written with the rights of the user who runs bottle,
those in the bottle with the agent's. Of what comes from the bottle, git's directories,
links that lead out, devices and the like are left out.`
	textCpExample = `  sudo bottle cp impl:/workspace/report.pdf .
  sudo bottle cp ./data/. impl:/workspace/data`
	textDiffLong = `Show what an agent has changed in its copy of your directory, committed or not, as a
patch that git apply accepts. The old versions are your files as they are now. New files
that git ignores are left out.`
	textFetchLong = `Bring an agent's commits to the branch bottle/NAME of your repository, and its
uncommitted work as one more commit. Your files and your other branches do not change.
The commits are verified first; none of the agent's settings, hooks or filters is used.
Work in submodules is fetched to branches of the same name there.`
	textFetchExample = `  sudo bottle fetch impl && git diff ...bottle/impl
  sudo bottle fetch impl --branch try-2`
	textApplyLong = `Change your files as an agent has changed its copy of your directory, committed or
not. A file that you have changed as well is a conflict: then nothing is changed. New
files that git ignores are left out. Links that lead out of the directory and names of
git directories are refused.`
	textApplyExample = `  sudo bottle apply impl --dry-run
  sudo bottle apply impl`
	textNothingFetched     = "There is no commit to fetch."
	textNothingApplied     = "Your files have all changes already."
	textFetched            = "%s%s has %s of the agent's."
	textFetchedUncommitted = "%s%s has %s of the agent's, and its uncommitted work as one more."
	textFetchedNone        = "%s%s has no new commits."

	textCpArgs = "expected a path of the host and one of a bottle"
	hintCp     = "bottle cp NAME:PATH DEST, or bottle cp SOURCE NAME:PATH; a path of the host that contains a colon begins with ./"
)
