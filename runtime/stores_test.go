package runtime_test

import (
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/bot-bottle/bottle/internal/imageowner"
	"github.com/bot-bottle/bottle/internal/known"
	"github.com/bot-bottle/bottle/runtime"
)

// TestStores: a connection of a user of sudo has the user's image store, and does not ask for what
// is known either.
func TestStores(t *testing.T) {
	for uid, name := range map[int]string{0: "x", 1000: "bottle.u1000/x"} {
		c := connectConfig(t, func(cfg *runtime.Config) { cfg.Owner = uid })
		if got := imageowner.OwnName(c.Containerd().ImageService(), "x"); got != name {
			t.Errorf("user %d stores an image as %s, want %s", uid, got, name)
		}
		nctx := known.WithRecord(namespaces.WithNamespace(ctx(t), c.Namespace()), containers.Container{ID: "known", Image: "i"})
		if r, err := c.Containerd().ContainerService().Get(nctx, "known"); err != nil || r.Image != "i" {
			t.Errorf("user %d: known record: %+v, %v", uid, r, err)
		}
	}
}
