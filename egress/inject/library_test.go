package inject

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// TestGRPC uses grpc's own client and server.
func TestGRPC(t *testing.T) {
	service := health.NewServer()
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, service)
	t.Cleanup(server.Stop)
	var got string
	w := newWorld(t, options{http2: true, handler: func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		server.ServeHTTP(w, r)
	}})
	client, err := grpc.NewClient("passthrough:///"+apiHost+":443", grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS())),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", w.listen)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+w.placeholder)
	answer, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "answer", answer.GetStatus(), healthpb.HealthCheckResponse_SERVING)
	check(t, "authorization", got, "Bearer "+realValue)
	// An error is a response of trailers only.
	_, err = healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{Service: "none"})
	if err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("unknown service: %v", err)
	}
	stream, err := healthpb.NewHealthClient(client).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
	} {
		service.SetServingStatus("", want)
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		check(t, "streamed", answer.GetStatus(), want)
	}
}

// TestWebsocketLibrary exchanges messages with a websocket client and server. The server
// returns the credential in a message.
func TestWebsocketLibrary(t *testing.T) {
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		websocket.Server{Handler: func(c *websocket.Conn) {
			for {
				var s string
				if websocket.Message.Receive(c, &s) != nil {
					return
				}
				_ = websocket.Message.Send(c, s+" "+r.Header.Get("Authorization"))
			}
		}}.ServeHTTP(w, r)
	}})
	config, err := websocket.NewConfig("wss://"+apiHost+"/", "https://"+apiHost)
	if err != nil {
		t.Fatal(err)
	}
	config.Header.Set("Authorization", "Bearer "+w.placeholder)
	conn, _ := w.raw(protoHTTP1)
	c, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"hello", "", strings.Repeat("long ", 20000)} {
		if err := websocket.Message.Send(c, message); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil {
			t.Fatal(err)
		}
		if got != message+" Bearer "+w.placeholder {
			t.Errorf("message of %d bytes: got %d: %.200s", len(message), len(got), got)
		}
	}
}

// TestContextEndsConnection ends a connection without a request and one with an upgrade.
func TestContextEndsConnection(t *testing.T) {
	w := newWorld(t, options{handler: websocket.Server{Handler: func(c *websocket.Conn) {
		var s string
		_ = websocket.Message.Receive(c, &s)
	}}.ServeHTTP})
	for _, upgrade := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		client, served := tcpPair(t)
		done := make(chan error, 1)
		go func() { done <- w.in.ServeConn(ctx, served, w.target) }()
		if upgrade {
			conn := tlsClient(t, client, w)
			config, err := websocket.NewConfig("wss://"+apiHost+"/", "https://"+apiHost)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := websocket.NewClient(config, conn); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; (err == nil) != upgrade {
			t.Errorf("upgrade=%v: %v", upgrade, err)
		}
		_, _ = io.Copy(io.Discard, client) // until it is closed
	}
}
