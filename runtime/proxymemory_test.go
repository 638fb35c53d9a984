package runtime_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// A proxy that needs more memory than the default gets a limit of its own.
func TestProxyMemory(t *testing.T) {
	leakcheck.Check(t)
	c, name := connect(t), "claude-bottle-test-memory"
	dir := bottleDir(t, c, name)
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{".bottle", "proc", "sys", "dev"} {
		must(t, os.MkdirAll(filepath.Join(rootfs, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(rootfs, guestInit), nil, 0o755))
	self, err := os.Executable()
	must(t, err)
	t.Cleanup(func() { remove(t, c, name+runtime.ProxySuffix) })
	task, err := c.CreateProxy(ctx(t), runtime.ProxyConfig{
		Name: name, Dir: dir, NetNS: netNS(t, dir, "proxy.netns"), Hostname: "proxy",
		Args: []string{guestInit, "proxy"}, Memory: 300 << 20,
		Mounts: []runtime.Mount{{Source: self, Target: guestInit}}, LogFile: filepath.Join(dir, "proxy.log"),
		Labels: map[string]string{runtime.LabelName: name, runtime.LabelRole: runtime.RoleProxy},
	})
	must(t, err)
	must(t, task.Start(ctx(t)))
	if got := cgroupValue(t, task.PID(), "memory", "memory.limit_in_bytes", "memory.max"); got != "314572800" {
		t.Errorf("memory limit in force: %q", got)
	}
}
