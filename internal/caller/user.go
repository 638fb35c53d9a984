package caller

import (
	"os"
	"os/user"
	"strconv"
)

// invokingUser returns the home folder and ids of whoever asked: with sudo, the
// user behind SUDO_UID, whose keys, skills and settings are meant.
func invokingUser(uid, gid int) (home string, u, g int) {
	home = os.Getenv("HOME")
	id := os.Getenv("SUDO_UID")
	if id == "" || uid != 0 {
		return home, uid, gid
	}
	su, err := user.LookupId(id)
	if err != nil {
		return home, uid, gid
	}
	n, err := strconv.Atoi(su.Uid)
	if err != nil {
		return home, uid, gid
	}
	m, err := strconv.Atoi(su.Gid)
	if err != nil {
		return home, uid, gid
	}
	return su.HomeDir, n, m
}

// CurrentCaller is the user who invoked this process: under sudo, the user who
// ran sudo.
func Current() Caller {
	wd, _ := os.Getwd() // an unreachable directory is reported when it is needed
	c := Caller{Getenv: os.LookupEnv, WorkDir: wd, UID: os.Getuid(), GID: os.Getgid(), Environ: os.Environ()}
	c.Home, c.UID, c.GID = invokingUser(c.UID, c.GID)
	return c
}
