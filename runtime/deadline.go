package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/dialer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// callTimeout bounds a call of containerd. Without a bound, a call waits forever for a
// containerd that has accepted it and hangs.
var callTimeout = time.Minute // changed in tests

// callTimeouts are the bounds of calls that may take longer, by the end of their names;
// 0: none.
var callTimeouts = map[string]time.Duration{
	"tasks.v1.Tasks/Wait":           0, // for the end of a process
	"transfer.v1.Transfer/Transfer": 0, // reports its progress
	"diff.v1.Diff/Apply":            30 * time.Minute,
	"diff.v1.Diff/Diff":             30 * time.Minute,
	// These may collect garbage or read all files of a snapshot.
	"images.v1.Images/Delete":        10 * time.Minute,
	"leases.v1.Leases/Delete":        10 * time.Minute,
	"snapshots.v1.Snapshots/Remove":  10 * time.Minute,
	"snapshots.v1.Snapshots/Cleanup": 10 * time.Minute,
	"snapshots.v1.Snapshots/Usage":   10 * time.Minute,
}

// boundedStreams are the streams whose end does not depend on a client.
var boundedStreams = []string{"/List", "/ListStream"}

func timeoutOf(method string) time.Duration {
	for name, limit := range callTimeouts {
		if strings.HasSuffix(method, "."+name) {
			return limit
		}
	}
	return callTimeout
}

// noAnswer begins the text of an error of a call that reached its deadline. The client
// library keeps an error's text and code and nothing else.
const noAnswer = "containerd did not answer within "

// NoAnswer reports whether an error was caused by a containerd that did not answer in
// time.
func NoAnswer(err error) bool { return err != nil && strings.Contains(err.Error(), noAnswer) }

// lateError returns the error of a call that has reached the deadline of its context, and
// other errors unchanged: containerd reports a shim's timeout with the same code.
func lateError(ctx context.Context, start time.Time, err error) error {
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) || status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	return status.Error(codes.DeadlineExceeded, noAnswer+time.Since(start).Round(time.Second/10).String())
}

func boundCall(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if answerFromHost(ctx, method, reply) {
		return nil
	}
	if limit := timeoutOf(method); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	start := time.Now()
	return lateError(ctx, start, invoke(ctx, method, req, reply, cc, opts...))
}

func boundStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	bounded := false
	for _, suffix := range boundedStreams {
		bounded = bounded || strings.HasSuffix(method, suffix)
	}
	if !bounded {
		return open(ctx, desc, cc, method, opts...)
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutOf(method))
	s := &boundedStream{ctx: ctx, cancel: cancel, start: time.Now()}
	var err error
	if s.ClientStream, err = open(ctx, desc, cc, method, opts...); err != nil {
		cancel()
		return nil, lateError(ctx, s.start, err)
	}
	return s, nil
}

// boundedStream releases its deadline with the last message.
type boundedStream struct {
	grpc.ClientStream
	ctx    context.Context
	cancel context.CancelFunc
	start  time.Time
}

func (s *boundedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		err = lateError(s.ctx, s.start, err)
	}
	s.cancel()
	return err
}

// dialOptions bound all calls of a connection to containerd.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(boundCall), grpc.WithChainStreamInterceptor(boundStream),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := dialer.ContextDialer(ctx, address)
			if err != nil {
				return nil, err
			}
			return &connection{c}, nil
		}),
	}
}

// connection is closed when it cannot be written to. The gRPC client stops writing then,
// but notices that the connection is lost only by reading from it.
type connection struct{ net.Conn }

func (c *connection) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close() // the error is that of the write
	}
	return n, err
}
