package main

// status.go writes the status page: what an operator looks at who has no Prometheus
// at hand, on a telephone perhaps, and the same as JSON. Everything on it is put into
// one statusReport first, so that both say the same. It is apart from pages.go, whose
// question is who may read it.
//
// Nearly all that is shown was chosen by users or strangers: each text goes through
// htmlPage.put, which escapes it. There is no script, and the policy that goes with
// the page lets none run.

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// statusRows bounds each table: a screenful of a page is of use, a thousand
	// sessions are for berth who and for Prometheus.
	statusRows = 100

	// statusText is how much of a name is shown; of a path its end, which tells more.
	statusText = 120

	// statusCertificate is when the page begins to warn of the certificate's end:
	// certbot renews 30 days before, so it has failed for a while.
	statusCertificate = 21 * 24 * time.Hour

	statusHot        = 90   // percent of a quota
	statusRefreshMax = 3600 // seconds
)

// A statusReport is all that the page tells. Its JSON is documented in
// docs/protocol.md, and scripts depend on the names.
type statusReport struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Time    string `json:"time"`
	Started string `json:"started"`
	Uptime  int64  `json:"uptime_seconds"`
	State   string `json:"state"` // ready, draining or not_ready
	Reason  string `json:"reason"`

	ConfigLoaded  string `json:"config_loaded"`
	ConfigRefused string `json:"config_refused"`

	CertificateEnds        string `json:"certificate_ends"`
	CertificateFingerprint string `json:"certificate_fingerprint"`

	StateFree uint64        `json:"state_free_bytes"`
	Commands  int           `json:"commands_running"`
	Hooks     int           `json:"on_upload_waiting"`
	Bans      int           `json:"bans"`
	Ports     statusPorts   `json:"passive_ports"`
	Open      int           `json:"sessions_open"` // logged in or not
	Transfers int           `json:"transfers_running"`
	Sessions  []whoEntry    `json:"sessions"` // logged in, those that move something first
	MoreSess  int           `json:"sessions_not_shown"`
	Users     []statusUser  `json:"users"` // the fullest first
	MoreUsers int           `json:"users_not_shown"`
	Recent    []recentEvent `json:"recent"` // warnings and errors, the latest first

	now     time.Time
	moving  int  // so many of Sessions, the first, are transfers
	named   bool // per_user: users and what is theirs are shown
	expires time.Time
	loaded  time.Time
}

type statusPorts struct {
	Size    int    `json:"size"`
	InUse   int    `json:"in_use"`
	Waiting int    `json:"waiting"`
	Refused uint64 `json:"refused"`
}

type statusUser struct {
	User       string `json:"user"`
	UsedBytes  int64  `json:"used_bytes"`
	QuotaBytes int64  `json:"quota_bytes"` // 0: none
	UsedFiles  int64  `json:"used_files"`
	QuotaFiles int64  `json:"quota_files"`
	Counting   bool   `json:"counting"` // what is used is not known yet
}

// answerStatus is the handler of /.
func (p *pages) answerStatus(a *httpAnswer, q *httpRequest) {
	select {
	case p.making <- struct{}{}:
		defer func() { <-p.making }()
	default:
		a.line(httpUnavailable, "Too many of this page are being made; try again later.")
		return
	}
	query := q.url.Query()
	refresh := 0
	if text := query.Get("refresh"); text != "" {
		var err error
		if refresh, err = strconv.Atoi(text); err != nil || refresh < 1 || refresh > statusRefreshMax {
			a.line(httpBadRequest, fmt.Sprintf("refresh is a number of seconds from 1 to %d, as in /?refresh=5.", statusRefreshMax))
			return
		}
	}
	switch query.Get("format") {
	case "json":
		a.set("Content-Type", "application/json")
		a.body.Write(encodeJSON(p.srv.report()))
		a.body.WriteByte('\n')
	case "", "html":
		a.set("Content-Type", "text/html; charset=utf-8")
		sum := sha256.Sum256([]byte(statusStyle))
		a.set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+
			"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		a.set("Referrer-Policy", "no-referrer")
		h := &htmlPage{b: &a.body}
		h.status(p.srv.report(), refresh)
	default:
		a.line(httpBadRequest, "format is html or json, as in /?format=json.")
	}
}

// report gathers what the page tells.
func (s *server) report() *statusReport {
	now := time.Now()
	cfg := s.config()
	r := &statusReport{Name: cfg.Server.Name, Time: jsonTime(now), Started: jsonTime(s.started), Uptime: int64(now.Sub(s.started) / time.Second),
		State: "ready", CertificateFingerprint: s.keys.fingerprint(), Bans: s.auth.bans(), Hooks: s.hooks.len(),
		Sessions: []whoEntry{}, Users: []statusUser{}, now: now, named: cfg.Metrics.PerUser, expires: s.keys.notAfter()}
	r.Version, _ = buildVersion()
	r.CertificateEnds = jsonTime(r.expires)
	if err := s.notReady(); err != nil {
		r.State, r.Reason = "not_ready", err.Error()
	}
	r.StateFree, _ = s.stateFree()
	ports := s.ports.report(cfg.Passive.Ports)
	r.Ports = statusPorts{ports.Size, ports.InUse, ports.Waiting, ports.Refused}
	s.mu.Lock()
	r.Open, r.Commands, r.ConfigRefused, r.loaded = len(s.sessions), s.commands, s.refused, s.loaded
	if s.draining {
		r.State, r.Reason = "draining", ""
	}
	s.mu.Unlock()
	r.ConfigLoaded = jsonTime(r.loaded)
	if r.ConfigRefused != "" && !r.named {
		r.ConfigRefused = "the log says why" // it may name a user
	}

	who := s.who()
	sort.SliceStable(who, func(i, j int) bool { return who[i].moving() && !who[j].moving() })
	for _, w := range who {
		if w.moving() {
			r.Transfers++
		}
		if len(r.Sessions) == statusRows {
			r.MoreSess++
			continue
		}
		r.Sessions = append(r.Sessions, w)
	}
	r.moving = min(r.Transfers, len(r.Sessions))
	if !r.named {
		for i := range r.Sessions {
			r.Sessions[i].anonymous()
		}
	} else {
		usage := s.usage()
		sort.Slice(usage, func(i, j int) bool {
			a, b := &usage[i], &usage[j]
			if x, y := a.full(), b.full(); x != y {
				return x > y
			}
			if a.UsedBytes != b.UsedBytes {
				return a.UsedBytes > b.UsedBytes
			}
			return a.Name < b.Name
		})
		for _, u := range usage[:min(len(usage), statusRows)] {
			r.Users = append(r.Users, statusUser{u.Name, u.UsedBytes, u.QuotaBytes, u.UsedFiles, u.QuotaFiles, !u.Known})
		}
		r.MoreUsers = len(usage) - len(r.Users)
	}
	r.Recent = s.recent.list()
	for i := range r.Recent {
		if !r.named {
			r.Recent[i].Detail = ""
		}
	}
	return r
}

//go:noinline
func jsonTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// moving tells whether a session works on a file, which is one row of Transfers.
func (w *whoEntry) moving() bool { return w.File != "" && w.Command == "" }

// anonymous takes out what metrics.per_user = false hides.
func (w *whoEntry) anonymous() {
	w.User, w.File, w.Command, w.Via = "", "", "", ""
	if w.Doing = w.Verb; w.Verb == "" {
		w.Doing = "idle"
	}
}

// full is how full a user's berth is, in percent of the quota that is nearer its end.
//
//go:noinline
func (u *userUsage) full() float64 {
	return max(percent(u.UsedBytes, u.QuotaBytes), percent(u.UsedFiles, u.QuotaFiles))
}

// percent is how much of whole part is, at most 100; 0 if whole is 0, which means no limit.
//
//go:noinline
func percent(part, whole int64) float64 {
	if whole <= 0 || part <= 0 {
		return 0
	}
	return min(100, 100*float64(part)/float64(whole))
}

// --- HTML ---

// statusStyle is the style sheet; the policy names its digest, so it is written as it is.
const statusStyle = `:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--dim:#5b6776;--line:#dfe4ea;--blue:#1463b8;--red:#b3261e;--green:#1a7f47;--amber:#8a5a00}
@media(prefers-color-scheme:dark){:root{--bg:#11161c;--card:#19212a;--ink:#e5eaf0;--dim:#9aa7b5;--line:#2c3743;--blue:#6db3f8;--red:#ff8a80;--green:#5fd38d;--amber:#f0b755}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:70rem;background:var(--bg);color:var(--ink);font:1rem/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:0;font-size:1.5rem}
h2{margin:1.6rem 0 .5rem;font-size:1.1rem}
a{color:var(--blue)}
p{margin:.4rem 0}
small,dt,th[scope=col]{color:var(--dim);font-size:.82rem;font-weight:400}
small{display:block}
header{display:flex;flex-wrap:wrap;gap:.3rem .8rem;align-items:baseline}
.state{padding:.05rem .6rem;border:1px solid;border-radius:1rem;font-size:.85rem;color:var(--green)}
.bad{color:var(--red)}
.warn{color:var(--amber)}
.note{padding:.5rem .8rem;background:var(--card);border:1px solid var(--line);border-left:.3rem solid var(--red);border-radius:.3rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.5rem;margin:1rem 0}
dl div,.box{background:var(--card);border:1px solid var(--line);border-radius:.5rem}
dl div{padding:.5rem .8rem}
dd{margin:0}
.box{overflow-x:auto}
table{width:100%;border-collapse:collapse}
th,td{padding:.45rem .8rem;text-align:left;vertical-align:top;font-weight:400;contain:paint}
tr+tr th,tr+tr td,tbody tr:first-child>*{border-top:1px solid var(--line)}
.n{text-align:right;white-space:nowrap;overflow-wrap:normal}
.bar{width:38%}
.when{white-space:nowrap}
progress{display:block;width:100%;height:.6rem;margin:.4rem 0 .2rem;accent-color:var(--blue)}
progress.hot{accent-color:var(--red)}
footer{margin-top:1.6rem;color:var(--dim)}
footer a{margin-right:.8rem}
@media(max-width:40rem){body{padding:.7rem}th,td{padding:.4rem .5rem}.bar{width:33%}}
`

// An htmlPage is a page that is written from its beginning to its end.
type htmlPage struct{ b *bytes.Buffer }

// put writes markup with a text for each %, escaped. It is no fmt.Fprintf, which would
// write what nobody has escaped.
//
//go:noinline
func (h *htmlPage) put(markup string, texts ...string) {
	for _, text := range texts {
		before, after, _ := strings.Cut(markup, "%")
		h.b.WriteString(before)
		h.b.WriteString(html.EscapeString(htmlText(text)))
		markup = after
	}
	h.b.WriteString(markup)
}

// htmlText is text that cannot change how its surroundings are shown: what controls a
// terminal or turns the direction of writing is replaced.
func htmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// tail is the end of a path, if all of it is too long.
//
//go:noinline
func tail(s string) string {
	if r := []rune(s); len(r) > statusText {
		return "…" + string(r[len(r)-statusText+1:])
	}
	return s
}

// number is n in digits.
//
//go:noinline
func number(n int64) string { return strconv.FormatInt(n, 10) }

// when writes how long before now t was, with the time itself for who wants that.
func (h *htmlPage) when(now, t time.Time) {
	at := jsonTime(t)
	h.put(`<time datetime="%" title="%">%</time>`, at, at, progressTime(now.Sub(t)))
}

// bar writes how much of whole part is; nothing where whole is not known.
func (h *htmlPage) bar(label, name string, part, whole int64, hot bool) {
	if whole <= 0 {
		return
	}
	class := ""
	if hot && percent(part, whole) >= statusHot {
		class = "hot"
	}
	h.put(`<progress class="%" max="%" value="%" aria-label="%"></progress>`, class, number(whole), number(min(max(part, 0), whole)), label+tail(name))
}

// table begins a table; each of heads is class|title, and the class may be empty.
func (h *htmlPage) table(id, title string, heads ...string) {
	h.put(`<h2 id="%">%</h2><div class="box" role="region" tabindex="0" aria-labelledby="%"><table><thead><tr>`, id, title, id)
	for _, head := range heads {
		class, title, _ := strings.Cut(head, "|")
		h.put(`<th scope="col" class="%">%</th>`, class, title)
	}
	h.put("</tr></thead><tbody>\n")
}

// endTable ends it: with a row that says so if it is empty, and how many more there are.
func (h *htmlPage) endTable(rows, more int, empty string) {
	if rows == 0 {
		h.put(`<tr><td colspan="4">%</td></tr>`, empty)
	}
	h.put("</tbody></table></div>\n")
	if more > 0 {
		h.put("<p>And % more.</p>\n", number(int64(more)))
	}
}

// fact writes one of the small facts; class is "" or how it is to stand out.
//
//go:noinline
func (h *htmlPage) fact(name, value, class string) {
	h.put("<div><dt>%</dt><dd class=\"%\">%</dd></div>\n", name, class, value)
}

// status writes the page.
func (h *htmlPage) status(r *statusReport, refresh int) {
	state, class := strings.ReplaceAll(r.State, "_", " "), "state"
	if r.State != "ready" {
		class = "state bad"
	}
	h.put("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">")
	if refresh > 0 {
		h.put(`<meta http-equiv="refresh" content="%">`, number(int64(refresh)))
	}
	h.put(`<title>%: %</title><link rel="icon" href="data:,"><style>`, r.Name, state)
	h.put(statusStyle)
	h.put("</style></head>\n<body><header><h1>%</h1><span class=\"%\">%</span></header>\n<main>\n", r.Name, class, state)
	h.notes(r)
	h.facts(r)
	h.transfers(r)
	h.sessions(r)
	h.users(r)
	h.recent(r)
	next, text := "/?refresh=5", "refresh every 5 s"
	if refresh > 0 {
		next, text = "/", "stop refreshing"
	}
	h.put(`</main><footer><p><a href="%">%</a> <a href="/?format=json">as JSON</a> <a href="/metrics">/metrics</a> <a href="/healthz">/healthz</a> `+
		"<a href=\"/readyz\">/readyz</a></p><p><small>As of %.</small></p></footer></body></html>\n", next, text, r.Time)
}

// notes are what wants somebody's attention.
func (h *htmlPage) notes(r *statusReport) {
	note := func(text, about string) {
		h.put("<p class=\"note\" role=\"status\">%%</p>\n", text, about)
	}
	switch {
	case r.State == "draining":
		note("Draining: no new sessions are taken, and the daemon ends when those here have.", "")
	case r.Reason != "":
		note("Not ready: ", r.Reason)
	}
	if r.ConfigRefused != "" {
		note("The last reload was refused, and the configuration before it is in use: ", r.ConfigRefused)
	}
	switch left := r.expires.Sub(r.now); {
	case left <= 0:
		note("The certificate has ended.", "")
	case left < statusCertificate:
		note("The certificate ends in ", progressTime(left))
	}
	if r.Ports.Waiting > 0 {
		note("Sessions wait for a passive port; make passive.ports larger. They are ", number(int64(r.Ports.Waiting)))
	}
}

func (h *htmlPage) facts(r *statusReport) {
	alarm := func(yes bool, class string) string {
		if yes {
			return class
		}
		return ""
	}
	h.put("<dl>\n")
	h.fact("Version", r.Version, "")
	h.fact("Up for", progressTime(time.Duration(r.Uptime)*time.Second), "")
	h.fact("Sessions", number(int64(r.Open)), "")
	h.fact("Transfers", number(int64(r.Transfers)), "")
	h.fact("Commands", number(int64(r.Commands)), "")
	h.fact("on_upload waits", number(int64(r.Hooks)), "")
	h.fact("Certificate until", r.CertificateEnds[:min(len(r.CertificateEnds), len("2006-01-02"))], alarm(r.expires.Sub(r.now) < statusCertificate, "bad"))
	h.fact("Configured", progressTime(r.now.Sub(r.loaded))+" ago", alarm(r.ConfigRefused != "", "bad"))
	h.fact("Free for state", humanBytes(int64(r.StateFree)), "")
	ports := number(int64(r.Ports.InUse))
	if r.Ports.Size > 0 {
		ports += " of " + number(int64(r.Ports.Size))
	}
	h.fact("Passive ports", ports, alarm(r.Ports.Waiting > 0, "bad"))
	h.fact("Addresses banned", number(int64(r.Bans)), alarm(r.Bans > 0, "warn"))
	h.put("</dl>\n")
}

func (h *htmlPage) transfers(r *statusReport) {
	if r.Transfers == 0 {
		return
	}
	h.table("transfers", "Transfers", "|File", "bar|Progress", "n|Rate")
	for _, w := range r.Sessions[:r.moving] {
		name, of, left := w.File, "", ""
		if name == "" {
			name = "session " + number(int64(w.ID))
		}
		if w.Size > 0 {
			of = " of " + humanBytes(w.Size) + ", " + number(int64(percent(w.Bytes, w.Size))) + "\u00a0%"
		}
		if more := w.Size - w.Bytes; more > 0 && w.Rate > 0 {
			left = progressTime(time.Duration(float64(more)/float64(w.Rate)*float64(time.Second))) + " left"
		}
		h.put(`<tr><th scope="row"><bdi>%</bdi><small>% %</small></th><td class="bar">`, tail(name), w.Verb, w.User)
		h.bar("progress of ", name, w.Bytes, w.Size, false)
		h.put("<small>%%</small></td><td class=\"n\">%/s<small>%</small></td></tr>\n", humanBytes(w.Bytes), of, humanBytes(w.Rate), left)
	}
	h.endTable(1, r.Transfers-r.moving, "")
}

func (h *htmlPage) sessions(r *statusReport) {
	h.table("sessions", "Sessions", "|User", "|From", "when|For", "|Doing")
	for i, w := range r.Sessions {
		if i < r.moving {
			w.Doing = w.Verb // the rest is in Transfers
		}
		h.put(`<tr><th scope="row"><bdi>%</bdi><small>id %</small></th><td>%<small>%</small></td><td class="when">`, w.User, number(int64(w.ID)), w.Address, w.Protocol)
		since, _ := time.Parse(time.RFC3339, w.Since)
		h.when(r.now, since)
		h.put("</td><td><bdi>%</bdi></td></tr>\n", tail(w.Doing))
	}
	h.endTable(len(r.Sessions), r.MoreSess, "Nobody is logged in.")
	if early := r.Open - len(r.Sessions) - r.MoreSess; early > 0 {
		h.put("<p>Not logged in yet: %.</p>\n", number(int64(early)))
	}
}

func (h *htmlPage) users(r *statusReport) {
	if !r.named {
		h.put("<p>metrics.per_user is false: users and their files are not shown.</p>\n")
		return
	}
	h.table("users", "Users", "|User", "bar|Bytes", "bar|Files")
	for _, u := range r.Users {
		h.put(`<tr><th scope="row"><bdi>%</bdi></th>`, tail(u.User))
		h.used("bytes of ", &u, u.UsedBytes, u.QuotaBytes, humanBytes)
		h.used("files of ", &u, u.UsedFiles, u.QuotaFiles, number)
		h.put("</tr>\n")
	}
	h.endTable(len(r.Users), r.MoreUsers, "There are no users whose files are counted.")
}

// used writes how much of a quota is used.
func (h *htmlPage) used(label string, u *statusUser, part, whole int64, text func(int64) string) {
	if u.Counting {
		h.put(`<td class="bar"><small>being counted</small></td>`)
		return
	}
	h.put(`<td class="bar">`)
	h.bar(label, u.User, part, whole, true)
	words := text(part)
	if whole > 0 {
		words += " of " + text(whole)
	}
	h.put(`<small>%</small></td>`, words)
}

func (h *htmlPage) recent(r *statusReport) {
	h.table("recent", "Last warnings and errors", "when|Ago", "|What", "n|Times")
	for _, e := range r.Recent {
		class := "warn"
		if e.Level == "error" {
			class = "bad"
		}
		h.put(`<tr><td class="when">`)
		h.when(r.now, e.at)
		h.put("</td><td><span class=\"%\">%</span> %<small><bdi>%</bdi></small></td><td class=\"n\">%</td></tr>\n", class, e.Level, e.Message, e.Detail, number(int64(e.Count)))
	}
	h.endTable(len(r.Recent), 0, "None since the start.")
}
