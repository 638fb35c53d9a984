package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/plan"
)

const (
	textPullLong = `Pull an image from its registry into containerd's store and unpack it for this
host. Registry logins are those that docker login stored for the user who called
sudo. Registries are configured in hosts.toml files, as for containerd's own tools.`
	textPushLong = `Push an image from containerd's store to the registry that its name begins with.
If only this host's platform of a multi-platform image is in the store, only that
one is pushed.`
	textRmiLong = `Remove images by name or by the beginning of a digest. Layers and unpacked files
that nothing else uses are freed before the command ends.`
	textHostsDir = "directory of hosts.toml files (BOTTLE_HOSTS_DIR; default /etc/containerd/certs.d)"
	textOneImage = "expected exactly one image name"
	hintOneImage = "%s registry.example/name:tag"
	textNoImage  = "missing image name"
	hintRmi      = "bottle rmi IMAGE"
	textNoImages = "There are no images."
)

// printRef prints an image's name.
func (a *app) printRef(ref string) error {
	_, err := fmt.Fprintln(a.stdout, ref)
	return err
}

func (a *app) printImages(list []supply.Status) error {
	if len(list) == 0 {
		a.note(textNoImages)
		return nil
	}
	t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tDIGEST\tSIZE\tAGE\tUSED BY")
	for _, i := range list {
		used := strings.Join(i.UsedBy, ", ")
		if used == "" {
			used = "-"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", visible(i.Name), partName(i.Digest),
			units.HumanSize(float64(i.Size)), age(time.Since(i.Created)), visible(used))
	}
	return t.Flush()
}

// image describes the image, its base and what is pulled for it.
func image(p *plan.Plan) string {
	s := p.Image
	if p.BaseRef != "" {
		s = fmt.Sprintf("%s, derived from %s with %s at %s", p.Image, p.BaseRef, visible(p.Dir), visible(p.Target))
	}
	if p.Pull != "" {
		s += " (to be pulled: " + p.Pull + ")"
	}
	return s
}
