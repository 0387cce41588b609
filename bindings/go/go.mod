module github.com/reasoning-rpc/reasoning-rpc/bindings/go

go 1.24
