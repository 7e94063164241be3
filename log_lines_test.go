package main

// One line for each thing that is over: what the log says of it, well or not, by each of
// the protocols. log_test.go is about how a line is written.

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// lines are those at info and above that do has caused, without time and level.
func (b *ftpBox) lines(do func()) (all []string) {
	began := len(b.log.String())
	do()
	for line := range strings.Lines(b.log.String()[began:]) {
		_, line, _ = strings.Cut(line, " ")
		if level, rest, _ := strings.Cut(line, " "); level != "level=DEBUG" {
			all = append(all, strings.TrimSuffix(rest, "\n"))
		}
	}
	return all
}

// wantLines has do cause these lines and no other.
func (b *ftpBox) wantLines(t *testing.T, what string, do func(), want ...string) {
	t.Helper()
	got := b.lines(do)
	same := len(got) == len(want)
	for i := 0; same && i < len(want); i++ {
		same = wildcard(want[i], got[i])
	}
	if !same {
		t.Errorf("%s: the log says\n\t%s\nand should\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestLogOfEachVerb(t *testing.T) {
	inBox(t, "", `permissions = ["read", "write", "delete", "list", "rename", "mkdir"]`, func(t *testing.T, b *ftpBox) {
		const who = "session=1 user=ann addr=127.0.0.1 proto=ftp verb="
		var c *ftpClient
		b.wantLines(t, "login", func() { c = b.dial(t).login() }, "msg=login session=1 user=ann addr=127.0.0.1 proto=ftp method=password")
		b.wantLines(t, "STOR", func() { c.store("STOR a b", "123") },
			`msg=transfer session=1 user=ann addr=127.0.0.1 direction=upload proto=ftp verb=STOR path="/a b" bytes=3 dur=* result=ok`)
		b.wantLines(t, "RETR", func() { c.fetch("RETR a b") },
			`msg=transfer session=1 user=ann addr=127.0.0.1 direction=download proto=ftp verb=RETR path="/a b" bytes=3 dur=* result=ok`)
		b.put(t, "plain", "x")
		for _, tt := range []struct{ line, reply, want string }{
			{"MKD d", "257 *", `msg="directory made" ` + who + "MKD path=/d result=ok"},
			{"MKD d", "550 *", "msg=refused " + who + `MKD result=exists path=/d error="*"`},
			{"SITE CHMOD 4640 a b", "200 *", `msg="mode changed" ` + who + `SITE path="/a b" mode=0640 result=ok`},
			{"SITE CHMOD 640 nosuch", "550 *", "msg=refused " + who + `SITE result=not_found path=/nosuch error="*"`},
			{"MFMT 20200102030405 a b", "213 *", `msg="time changed" ` + who + `MFMT path="/a b" modified=2020-01-02T03:04:05.000Z result=ok`},
			{"MFMT 20200102030405 nosuch", "550 *", "msg=refused " + who + `MFMT result=not_found path=/nosuch error="*"`},
			{"SITE UTIME 20200102030405 a b", "200 *", `msg="time changed" ` + who + `SITE path="/a b" modified=2020-01-02T03:04:05.000Z result=ok`},
			{"HASH a b", "213 *", "msg=digest " + who + `HASH path="/a b" bytes=3 dur=* sha256=* result=ok`},
			{"RNFR nosuch", "550 *", "msg=refused " + who + `RNFR result=not_found path=/nosuch error="*"`},
			{"RNFR a b", "350 *", ""},
			{"RNTO d/c", "250 *", "msg=renamed " + who + `RNTO path="/a b" to=/d/c result=ok`},
			{"RMD d", "550 *", "msg=refused " + who + `RMD result=not_empty path=/d error="*"`},
			{"DELE d/c", "250 *", "msg=deleted " + who + "DELE path=/d/c bytes=3 result=ok"},
			{"DELE d/c", "550 *", "msg=refused " + who + `DELE result=not_found path=/d/c error="*"`},
			{"RMD d", "250 *", `msg="directory removed" ` + who + "RMD path=/d result=ok"},
			{"SITE EXEC nosuch", "550 *", "msg=refused " + who + "exec result=denied command=nosuch"},
			{"PORT 10,0,0,1,8,8", "501 *", "msg=refused " + who + "PORT result=denied asked=10.0.0.1:2056"},
			// What only looks, or names nothing, is no event.
			{"SIZE nosuch", "550 *", ""},
			{"CWD nosuch", "550 *", ""},
			{"MLST nosuch", "550 *", ""},
			{"DELE .berth-x", "553 *", ""},
		} {
			want := []string{tt.want}
			if tt.want == "" {
				want = nil
			}
			b.wantLines(t, tt.line, func() { c.cmd(tt.line, tt.reply) }, want...)
		}
		b.wantLines(t, "RETR of nothing", func() {
			c.cmd("EPSV", "229 *")
			c.cmd("RETR nosuch", "550 *")
		}, "msg=refused "+who+`RETR result=not_found path=/nosuch error="*"`)
		b.wantLines(t, "STOR to nowhere", func() {
			c.cmd("EPSV", "229 *")
			c.cmd("STOR no/such", "550 *")
		}, "msg=refused "+who+`STOR result=not_found path=/no/such error="*"`)
		b.wantLines(t, "QUIT", func() { c.cmd("QUIT", "221 *"); <-c.over }, "msg=logout session=1 user=ann addr=127.0.0.1 proto=ftp dur=* result=ok")

		f := b.dialFrames(t).enter()
		const framed = "session=2 user=ann addr=127.0.0.1 proto=frames verb="
		for _, tt := range []struct {
			ask    string
			code   int
			reason string
			want   string
		}{
			{`{"do":"get","path":"nosuch"}`, 550, "not_found", "msg=refused " + framed + `get result=not_found path=/nosuch error="*"`},
			{`{"do":"touch","path":"t"}`, 250, "", `msg="file made" ` + framed + "touch path=/t result=ok"},
			{`{"do":"touch","path":"t","mtime":"2020-01-02T03:04:05Z"}`, 250, "", `msg="time changed" ` + framed + "touch path=/t modified=2020-01-02T03:04:05.000Z result=ok"},
			{`{"do":"chmod","path":"t","mode":"0600"}`, 250, "", `msg="mode changed" ` + framed + "chmod path=/t mode=0600 result=ok"},
			{`{"do":"move","path":"nosuch","to":"t"}`, 550, "not_found", "msg=refused " + framed + `move result=not_found path=/t error="*"`},
			{`{"do":"remove","path":"nosuch","recursive":true}`, 550, "not_found", "msg=refused " + framed + `remove result=not_found path=/nosuch error="*"`},
			{`{"do":"remove","path":"t"}`, 250, "", "msg=deleted " + framed + "remove path=/t bytes=0 result=ok"},
			{`{"do":"exec","shell":"x"}`, 550, "denied", "msg=refused " + framed + "exec result=denied command=shell"},
		} {
			b.wantLines(t, tt.ask, func() { f.do(tt.ask, tt.code, tt.reason) }, tt.want)
		}
	})
}

// TestLogKickedAndDrained: what an operator or the daemon's end cuts off says so, in the
// log and in the metrics, and is not taken for the network's fault.
func TestLogKickedAndDrained(t *testing.T) {
	for result, end := range map[string]func(b *ftpBox){
		"kicked": func(b *ftpBox) { b.srv.everySession()[0].kill(errKicked) },
		"drained": func(b *ftpBox) {
			if took := b.drains().took(); took < 3*time.Second {
				panic(fmt.Sprint("transfers had ", took))
			}
		},
	} {
		for verb, direction := range map[string]string{"RETR f": "download", "STOR g": "upload"} {
			t.Run(result+" "+verb[:4], func(t *testing.T) {
				inBox(t, "limits.data_timeout = \"1h\"\nserver.drain = \"3s\"\n", "", func(t *testing.T, b *ftpBox) {
					b.put(t, "f", string(testBytes(4<<20)))
					c := b.dial(t).login()
					c.cmd("EPSV", "229 *")
					c.send(verb + "\r\n")
					d := c.data()
					c.want("150 *")
					synctest.Wait() // nobody reads or writes d
					got := b.lines(func() { end(b); <-c.over })
					d.Close()
					var of []string
					for _, line := range got {
						if strings.HasPrefix(line, "msg=transfer ") || strings.HasPrefix(line, "msg=logout ") {
							of = append(of, line)
						}
					}
					if len(of) != 2 || !wildcard("msg=transfer session=1 user=ann addr=127.0.0.1 direction="+direction+" * result="+result+` error="*"`, of[0]) ||
						!wildcard("msg=logout session=1 user=ann * result="+result, of[1]) {
						t.Errorf("the log says\n\t%s", strings.Join(got, "\n\t"))
					}
					b.wantMetric(t, 1, "berth_transfers_total", "ann", direction, "ftp", result)
					b.wantMetric(t, 1, "berth_sessions_total", "ftp", result)
				})
			})
		}
	}
}
