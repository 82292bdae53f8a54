// Command etcd is the etcd that the Kubernetes of the tests stores in. Debian's is too old for watches that begin with a
// list, which need its progress notifications.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
