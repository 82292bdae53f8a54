// The gRPC application of tests/clients: the interoperability test service of google.golang.org/grpc with health and
// reflection, on $PORT. Every answer says in the header "pod" which pod gave it, and that of a unary call in "served" how
// many of them this pod has answered.
package main

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
)

func main() {
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("POD_IP"), os.Getenv("PORT")))
	if err != nil {
		log.Fatal(err)
	}
	pod := metadata.Pairs("pod", os.Getenv("POD_NAME"))
	var served atomic.Int64
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			count := metadata.Pairs("served", strconv.FormatInt(served.Add(1), 10))
			if err := grpc.SetHeader(ctx, metadata.Join(pod, count)); err != nil {
				return nil, err
			}
			return handle(ctx, request)
		}),
		grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := stream.SetHeader(pod); err != nil {
				return err
			}
			return handle(service, stream)
		}),
	)
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)

	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		server.GracefulStop()
	}()
	log.Printf("listening on %s", listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
