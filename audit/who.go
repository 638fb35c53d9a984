package audit

import (
	"math"
	"os"
	"strconv"
	"strings"
)

// Who is the user that a process works for.
type Who struct {
	UID int // of the caller, under sudo that of the user who ran sudo
	// SudoUser is that user's name; empty without sudo.
	SudoUser string
	// LoginUID is the user who logged in, which changes neither with sudo nor with su;
	// nil: unknown, for example for a service.
	LoginUID *uint32
	Command  string // bottle's command
}

// Current returns who this process works for, as the user with an ID.
func Current(uid int, command string) Who {
	w := Who{UID: uid, Command: command, LoginUID: loginUID("/proc/self/loginuid")}
	if os.Getuid() == 0 && os.Getenv("SUDO_UID") == strconv.Itoa(uid) {
		w.SudoUser = os.Getenv("SUDO_USER")
	}
	return w
}

// loginUID reads the audit ID that the kernel gives to each login (pam_loginuid(8)). It
// is the largest number if it was never set.
func loginUID(path string) *uint32 {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // a kernel without CONFIG_AUDIT
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil || n == math.MaxUint32 {
		return nil
	}
	id := uint32(n)
	return &id
}
