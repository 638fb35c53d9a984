package runtime

import "context"

// States returns the state of a container as List reads it from the host, and as
// containerd reports it. onHost is empty if List would ask containerd.
func (c *Client) States(ctx context.Context, id string) (onHost, reported string, pids [2]uint32, err error) {
	r, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), id)
	if err != nil {
		return "", "", pids, err
	}
	h, _ := c.hostState(r)
	t, err := c.taskState(ctx, id)
	return h.status, t.status, [2]uint32{h.pid, t.pid}, err
}
