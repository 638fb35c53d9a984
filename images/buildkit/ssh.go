package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// SSHAgent is an ssh agent of the caller for RUN --mount=type=ssh,id=ID.
type SSHAgent struct {
	ID     string // empty: default
	Socket string
}

// sshAgents forwards the caller's agents. It connects with the caller's rights: as
// root, bottle could use the agent of any user.
func (in *inputs) sshAgents() (bksession.Attachable, error) {
	f := &agentForwarder{in: in, sockets: map[string]string{}}
	for _, a := range in.req.SSH {
		if a.ID == "" {
			a.ID = sshforward.DefaultID
		}
		if _, ok := f.sockets[a.ID]; ok {
			return nil, fmt.Errorf("duplicate ssh agent %s", a.ID)
		}
		f.sockets[a.ID] = a.Socket
		conn, err := f.dial(a.ID) // report a missing agent before the build starts
		if err != nil {
			return nil, err
		}
		if err := conn.Close(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

type agentForwarder struct {
	sshforward.UnimplementedSSHServer
	in      *inputs
	sockets map[string]string // by id
}

func (f *agentForwarder) Register(server *grpc.Server) { sshforward.RegisterSSHServer(server, f) }

func (f *agentForwarder) dial(id string) (conn net.Conn, err error) {
	socket, ok := f.sockets[id]
	if !ok {
		return nil, fmt.Errorf("unknown ssh agent %s", id)
	}
	err = f.in.pool.Do(func() error {
		conn, err = net.Dial("unix", socket)
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		err = unreadable(socket)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to ssh agent %s: %w", id, err)
	}
	return conn, nil
}

// CheckAgent implements sshforward.SSHServer.
func (f *agentForwarder) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	id := req.ID
	if id == "" {
		id = sshforward.DefaultID
	}
	if _, ok := f.sockets[id]; !ok {
		return nil, fmt.Errorf("unknown ssh agent %s", id)
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent implements sshforward.SSHServer: it serves one connection of a step.
func (f *agentForwarder) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	ctx, id := stream.Context(), sshforward.DefaultID
	md, _ := metadata.FromIncomingContext(ctx)
	if ids := md[sshforward.KeySSHID]; len(ids) > 0 && ids[0] != "" {
		id = ids[0]
	}
	conn, err := f.dial(id)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	step, server := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = agent.ServeAgent(signOnly{agent.NewClient(conn)}, server) // ends with the connection
		_ = server.Close()
	}()
	err = sshforward.Copy(ctx, step, stream, nil) // closes step
	_ = conn.Close()
	<-served
	return err
}

// signOnly is an agent that lists keys and signs, and refuses everything else.
type signOnly struct{ agent.ExtendedAgent }

var errSignOnly = errors.New("not allowed in a build")

func (signOnly) Add(agent.AddedKey) error                 { return errSignOnly }
func (signOnly) Remove(ssh.PublicKey) error               { return errSignOnly }
func (signOnly) RemoveAll() error                         { return errSignOnly }
func (signOnly) Lock([]byte) error                        { return errSignOnly }
func (signOnly) Unlock([]byte) error                      { return errSignOnly }
func (signOnly) Extension(string, []byte) ([]byte, error) { return nil, errSignOnly }
