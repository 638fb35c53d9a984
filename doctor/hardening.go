package doctor

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/confine"
	"github.com/bot-bottle/bottle/internal/rootonly"
	"github.com/bot-bottle/bottle/policy"
)

// Hardening checks the settings of a host on which bottle's users must not become root:
// those in docs/hardening.md. Dir is the directory of the policy, program bottle's
// executable, and sudoers the file of sudoers(5). It changes nothing.
func Hardening(cfg bottle.Config, dir, program, sudoers string) []Finding {
	d := &checks{cfg: cfg}
	if d.needsRoot("hardening") {
		return d.found
	}
	d.sudoers(sudoers, program)
	d.policyFile(dir)
	d.systemConfig(dir)
	d.private("run directory", cfg.RunDir)
	d.private("state directory", cfg.StateDir)
	d.socket(cfg.Address)
	d.programs(program)
	d.landlock()
	d.plugins()
	d.roots("network configuration", cfg.CNIConf)
	if cfg.HostsDir != "" {
		d.roots("registries", cfg.HostsDir)
	}
	return d.found
}

// policyFile checks the policy, which bounds users of sudo.
func (d *checks) policyFile(dir string) {
	p, err := policy.Load(dir)
	switch {
	case err != nil:
		d.fail("policy", err, "bottle policy check")
	case p.Path == "":
		d.report("policy", LevelWarn, "write "+filepath.Join(dir, policy.File), "no policy: the defaults bind users of sudo who cannot become root otherwise")
	default:
		d.report("policy", LevelOK, "", "%s, which only root can change", p.Path)
	}
}

// systemConfig checks the system configuration, and that somebody learns what users do.
func (d *checks) systemConfig(dir string) {
	c, err := policy.LoadConfig(dir)
	if err != nil {
		d.fail("system configuration", err, "bottle policy check")
		return
	}
	switch {
	case len(c.UsersMaySet) > 0:
		d.report("system configuration", LevelWarn, "remove users_may_set from "+c.Path, "users of sudo may set %s: whoever chooses these can become root", strings.Join(c.UsersMaySet, ", "))
	default:
		d.report("system configuration", LevelOK, "", "only root chooses containerd's socket, directories and plugins")
	}
	d.audit(dir, c.Audit)
}

func (d *checks) audit(dir string, c audit.Config) {
	to := c.To
	switch {
	case to == "":
		d.report("audit", LevelWarn, "set audit: {to: journald} in "+filepath.Join(dir, policy.ConfigFile), "nothing is recorded")
		return
	case filepath.IsAbs(to):
		err := rootonly.Check(to)
		if errors.Is(err, fs.ErrNotExist) {
			err = rootonly.Check(filepath.Dir(to))
		}
		if err != nil {
			d.fail("audit", err, "mkdir -p "+filepath.Dir(to))
			return
		}
	}
	if c.OnFailure != audit.Stop {
		d.report("audit", LevelOK, "", "to %s; bottle works on when that fails", to)
		return
	}
	d.report("audit", LevelOK, "", "to %s; bottle stops when that fails", to)
}

// private checks a directory that only root may enter.
func (d *checks) private(check, path string) {
	var st unix.Stat_t
	err := rootonly.Check(path)
	if err == nil {
		err = unix.Stat(path, &st)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.report(check, LevelOK, "", "%s does not exist yet", path)
	case err != nil:
		d.fail(check, err, "chown root:root "+path)
	case st.Mode&0o077 != 0:
		d.report(check, LevelFail, "chmod 700 "+path, "%s is open to others than root (mode %04o)", path, st.Mode&0o7777)
	default:
		d.report(check, LevelOK, "", "%s is root's alone", path)
	}
}

// roots checks files that only root may change. What is missing cannot be changed by
// others if they cannot write to the directory that it would be in.
func (d *checks) roots(check, path string) {
	at := path
	err := rootonly.Check(at)
	for errors.Is(err, fs.ErrNotExist) && at != "/" {
		at = filepath.Dir(at)
		err = rootonly.Check(at)
	}
	if err != nil {
		d.fail(check, err, "chown root:root "+path)
		return
	}
	if at != path {
		d.report(check, LevelOK, "", "%s does not exist, and only root can create it", path)
		return
	}
	d.report(check, LevelOK, "", "only root can change %s", path)
}

// landlock checks whether the kernel can confine the processes of bottles.
func (d *checks) landlock() {
	const check = "Landlock"
	if v := confine.ABI(); v > 0 {
		d.report(check, LevelOK, "", "version %d confines proxies and their loggers to their files", v)
		return
	}
	d.report(check, LevelWarn, "use a kernel with landlock among its security modules (the parameter lsm=)", "the kernel does not confine proxies and their loggers to their files")
}

// socket checks who may talk to containerd: they are root.
func (d *checks) socket(address string) {
	const check = "containerd's socket"
	path := strings.TrimPrefix(address, "unix://")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		d.fail(check, &os.PathError{Op: "stat", Path: path, Err: err}, "systemctl start containerd")
		return
	}
	switch { // connecting needs the right to write, unix(7)
	case st.Mode&0o002 != 0:
		d.report(check, LevelFail, "chmod 660 "+path, "everybody may talk to %s (mode %04o), which makes them root", path, st.Mode&0o7777)
	case st.Mode&0o020 != 0 && st.Gid != 0:
		d.report(check, LevelFail, "set gid = 0 under [grpc] in containerd's configuration", "group %d may talk to %s, which makes its members root", st.Gid, path)
	case st.Uid != 0:
		d.report(check, LevelFail, "set uid = 0 under [grpc] in containerd's configuration", "%s belongs to user %d", path, st.Uid)
	default:
		d.report(check, LevelOK, "", "only root may talk to %s", path)
	}
}

// programs checks the programs that root executes for bottle.
func (d *checks) programs(program string) {
	const check = "programs"
	paths, missing := []string{program}, []string{}
	for _, name := range []string{"containerd", "runsc", "runc", "containerd-shim-runsc-v1", "containerd-shim-runc-v2"} {
		if path, err := exec.LookPath(name); err == nil {
			paths = append(paths, path)
		} else {
			missing = append(missing, name)
		}
	}
	// Without these, parts of bottle do not work, which they report themselves.
	for _, name := range []string{"git", "mkfs.ext4", "nsenter"} {
		if path, err := exec.LookPath(name); err == nil {
			paths = append(paths, path)
		}
	}
	if !d.executables(check, append(paths, sidecars()...)) {
		return
	}
	if len(missing) > 0 {
		d.report(check, LevelWarn, "check their owners and modes where they are", "not in PATH, and not checked: %s", strings.Join(missing, ", "))
		return
	}
	d.report(check, LevelOK, "", "only root can change %s", strings.Join(paths, ", "))
}

// sidecars returns the programs that runsc executes from the directory gvisor-bin beside it.
func sidecars() []string {
	runsc, err := exec.LookPath("runsc")
	if err != nil {
		return nil // reported as missing
	}
	dir := filepath.Join(filepath.Dir(runsc), "gvisor-bin")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // older releases have none
	}
	out := []string{dir}
	for _, e := range entries {
		out = append(out, filepath.Join(dir, e.Name()))
	}
	return out
}

// plugins checks all CNI plugins, as root executes those that a network configuration
// names.
func (d *checks) plugins() {
	const check = "CNI plugins"
	n := 0
	for _, dir := range filepath.SplitList(d.cfg.CNIPath) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.fail(check, err, "chown root:root "+dir)
			return
		}
		paths := []string{dir}
		for _, e := range entries {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
		if err == nil && !d.executables(check, paths) {
			return
		}
		n += len(entries)
	}
	d.report(check, LevelOK, "", "only root can change the %d files in %s", n, d.cfg.CNIPath)
}

// executables checks several files and reports the first that others can change.
func (d *checks) executables(check string, paths []string) bool {
	for _, path := range paths {
		if err := rootonly.Check(path); err != nil {
			d.fail(check, err, "chown root:root "+path)
			return false
		}
	}
	return true
}
