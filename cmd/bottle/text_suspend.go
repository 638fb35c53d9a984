package main

const (
	textSuspendLong = `Write the memory of bottles to an image on tmpfs and free their processors and memory:
of each only the image remains, which is about as large as what its processes use. bottle
resume continues a bottle with its processes, its files and its terminal. The agent must be a
session of bottle run -d or --keep. Network connections are lost, and so are sessions of bottle
exec and keys of ssh. A reboot removes the image.`
	textResumeLong = `Continue a suspended bottle: its processes, files and terminal are as they were, and its
policy and injected secrets are in force. It runs in the background; bottle attach rejoins it.`
	textSuspended     = "%s is suspended in %d MiB of memory. bottle resume %s continues it."
	textResumed       = "%s runs in the background. bottle attach %s rejoins it."
	textLost          = "%s has lost %s."
	textSuspendedAway = "%s was suspended. bottle resume %s continues it."
	textRmSuspended   = "%s is suspended"
	hintSuspended     = "bottle resume %s continues it; bottle rm -f %s removes it"
	hintStartSuspend  = "bottle resume %s continues it; bottle stop %s ends it and keeps its workspace"

	textForkLong = `Make bottles from a running one: each continues with its processes, its files and a copy of
its working directory from this moment on, under the name of the bottle with a suffix, and with a
network, a proxy, a log and a branch of its own. The bottle itself runs on and keeps its connections;
its forks have none. Its agent must be a session of bottle run -d or --keep. The forks run in the
background; bottle attach joins them.`
	textForkCount = "invalid number of forks %d"
	textForkLost  = "The forks do not have %s."
	hintForkCount = "a number from 1 to %d"

	textBusyFork    = "forking %s"
	textBusySuspend = "suspending %s"
	textBusyResume  = "resuming %s"
)
