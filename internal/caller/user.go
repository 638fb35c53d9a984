package caller

import (
	"os"
	"os/user"
	"strconv"
)

// Current returns the user who invoked this process: under sudo, the user who ran
// sudo, whose keys, skills, settings and rights apply.
func Current() Caller {
	wd, _ := os.Getwd() // an unreachable directory is reported when it is needed
	c := Caller{Getenv: os.LookupEnv, WorkDir: wd, Home: os.Getenv("HOME"), UID: os.Getuid(), GID: os.Getgid(), Environ: os.Environ()}
	c.Groups, _ = os.Getgroups()
	if c.UID == 0 {
		c.fromSudo(os.Getenv, user.LookupId, (*user.User).GroupIds)
	}
	return c
}

// fromSudo replaces root with the user in sudo's variables (sudo(8)). A user from a
// directory service, who is not in /etc/passwd, still has that id and not root's.
func (c *Caller) fromSudo(getenv func(string) string, lookup func(string) (*user.User, error), groups func(*user.User) ([]string, error)) {
	uid, err := strconv.Atoi(getenv("SUDO_UID"))
	if err != nil {
		return
	}
	c.UID, c.GID, c.Groups, c.Home = uid, uid, nil, getenv("SUDO_HOME")
	if gid, err := strconv.Atoi(getenv("SUDO_GID")); err == nil {
		c.GID = gid
	}
	u, err := lookup(strconv.Itoa(uid))
	if err != nil {
		return
	}
	c.Home = u.HomeDir
	if gid, err := strconv.Atoi(u.Gid); err == nil {
		c.GID = gid
	}
	ids, err := groups(u)
	if err != nil {
		return // fewer rights
	}
	for _, id := range ids {
		if gid, err := strconv.Atoi(id); err == nil {
			c.Groups = append(c.Groups, gid)
		}
	}
}
