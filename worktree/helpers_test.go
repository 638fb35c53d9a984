package worktree

import (
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// userCommand returns a command with the user's environment.
func userCommand(f *fixture, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.caller.Home, "LC_ALL=C"}
	return cmd
}

// blocks returns the space of a file on disk, in bytes.
func blocks(fi fs.FileInfo) int64 { return fi.Sys().(*syscall.Stat_t).Blocks * 512 }

func owner(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
