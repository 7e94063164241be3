package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestReloadReachesOpenSessions: what berth user changes holds for open sessions after a
// reload (contract section 9), over lines and over frames; before it, from the next login on.
func TestReloadReachesOpenSessions(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0]
	b.user(t, "bob", "")
	line := b.dialReal(t, addr).login()
	framed := b.dialReal(t, addr)
	framed.want("220 *")
	fr := framed.frames().enter()
	bob := b.dialReal(t, addr)
	bob.want("220 *")
	bob.cmd("USER bob", "331 *")
	bob.cmd("PASS secret", "230 *")
	reload := func() {
		t.Helper()
		if err := b.srv.reload(); err != nil {
			t.Fatal(err)
		}
	}
	reload() // nothing has changed
	line.cmd("MKD a", "257 *")

	b.user(t, "ann", `permissions = ["list", "read"]`)
	line.cmd("MKD b", "257 *")
	reload()
	line.cmd("MKD c", "550 *")
	line.cmd("PWD", "257 *")
	fr.do(`{"do":"mkdir","path":"d"}`, 550, "denied")
	b.missing(t, "c")

	b.user(t, "ann", "quota_bytes = \"1KiB\"\n")
	reload()
	line.cmd("AVBL", "213 1024")

	// Who may not come in any more has his sessions ended, whatever they do.
	b.user(t, "ann", "disabled = true")
	reload()
	for _, c := range []net.Conn{line.conn, framed.conn} {
		c.SetReadDeadline(time.Now().Add(replyTime))
		if said, err := io.ReadAll(c); err != nil || !strings.Contains(string(said), "The operator has ended this session.") {
			t.Errorf("a session of a disabled user reads %q, %v", said, err)
		}
	}
	bob.cmd("NOOP", "200 *")
	b.user(t, "bob", `allow_from = ["192.0.2.1"]`)
	reload()
	bob.cmd("NOOP", "421 *")
	bob.closed()
}
