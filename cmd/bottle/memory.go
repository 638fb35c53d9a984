package main

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Most commands allocate somewhat more than the 4 MB at which Go first collects garbage, and
// end soon: nearly all of that is in use.
const (
	startPercent = 200 // GOGC, for startTime: Go then collects at 8 MB
	startTime    = time.Second
)

// delayCollection delays the first garbage collection of this process, unless GOGC is set.
func delayCollection() {
	if os.Getenv("GOGC") != "" {
		return
	}
	usual := debug.SetGCPercent(startPercent)
	time.AfterFunc(startTime, func() { debug.SetGCPercent(usual) })
}

// idleDelay is how long a session lasts before bottle releases memory: the start of a
// session, and sessions that end soon, do not wait for it.
const idleDelay = 2 * time.Second

// releaseWhenIdle releases memory that a launch needed and a session does not, soon after
// the session began, unless stop was called.
func releaseWhenIdle() (stop func()) {
	t := time.AfterFunc(idleDelay, releaseMemory)
	return func() { t.Stop() }
}

// releaseMemory returns the memory that a launch needed: unused memory of the heap, and
// the pages of this program, most of which a waiting process does not execute. The kernel
// maps them again when they are needed. It is best-effort.
func releaseMemory() {
	debug.FreeOSMemory()
	if !isStatic("/proc/self/exe") {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer func() { _ = maps.Close() }()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to, offset, inode uint64
		var mode, device string
		// proc(5), "/proc/pid/maps"
		n, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d", &from, &to, &mode, &offset, &device, &inode)
		if err != nil || n != 6 || inode == 0 || strings.Contains(mode, "w") {
			continue
		}
		// Without an effect the memory stays in use, as before.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
	}
}

// isStatic reports whether nothing relocates a program when it starts, so that its
// read-only pages are those of its file.
func isStatic(program string) bool {
	f, err := elf.Open(program)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_DYNAMIC || p.Type == elf.PT_INTERP || p.Type == elf.PT_GNU_RELRO {
			return false
		}
	}
	return f.Type == elf.ET_EXEC
}
