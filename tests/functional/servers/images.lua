-- SPDX-License-Identifier: Apache-2.0
-- Serves the file named by ?file= with every fault the query asks for, so that a test shows its server in its URL:
--   etag=strong|weak|changing|none  modified=old|now|none  ranges=yes|no|silent  framing=length|chunked|close
--   cut=N (bytes of the body, then the connection is dropped)   stall=N (bytes, then nothing for 30 s)
--   cuts=N (how many requests are cut or stalled, 1 if not said)   delay=S (seconds before the answer)
--   status=C retry_after=S fails=N (the first N requests get that status)   encoding=E   head=C (the answer to HEAD)
-- Requests are counted by ?key=.
local arg = ngx.req.get_uri_args()
local number = ngx.shared.counts:incr(arg.key or ngx.var.uri, 1, 0)

if arg.delay then ngx.sleep(tonumber(arg.delay)) end
if arg.status and number <= tonumber(arg.fails or 1000) then
  if arg.retry_after then ngx.header["Retry-After"] = arg.retry_after end
  ngx.status = tonumber(arg.status)
  ngx.say("secret words of the server")
  return ngx.exit(ngx.HTTP_OK)
end
local method = ngx.req.get_method()
if method == "HEAD" and arg.head then return ngx.exit(tonumber(arg.head)) end

local file = assert(io.open(ngx.var.document_root .. "/" .. arg.file, "rb"))
local size = file:seek("end")
local first, last = 0, size - 1

local etags = { strong = '"v1"', weak = 'W/"v1"', changing = '"v' .. number .. '"' }
ngx.header["ETag"] = etags[arg.etag or "strong"]
local dates = { old = 0, now = ngx.time() }
if dates[arg.modified or "none"] then ngx.header["Last-Modified"] = ngx.http_time(dates[arg.modified]) end
if arg.encoding then ngx.header["Content-Encoding"] = arg.encoding end

local ranges = arg.ranges or "yes"
if ranges == "yes" then ngx.header["Accept-Ranges"] = "bytes" end
local condition = ngx.var.http_if_range
local fresh = not condition or condition == ngx.header["ETag"] or condition == ngx.header["Last-Modified"]
if ngx.var.http_range and ranges ~= "no" and fresh then
  local from, to = ngx.var.http_range:match("^bytes=(%d+)-(%d*)$")
  first, last = tonumber(from), math.min(tonumber(to) or last, last)
  if first >= size then
    ngx.header["Content-Range"] = "bytes */" .. size
    return ngx.exit(416)
  end
  ngx.status = 206
  ngx.header["Content-Range"] = ("bytes %d-%d/%d"):format(first, last, size)
end

local left = last - first + 1
if (arg.framing or "length") == "length" then ngx.header["Content-Length"] = left end
if method == "HEAD" then return ngx.exit(ngx.HTTP_OK) end

local fault = number <= tonumber(arg.cuts or 1) and tonumber(arg.cut or arg.stall) or left
ngx.send_headers()
file:seek("set", first)
local body = math.min(left, fault)
while body > 0 do
  local piece = file:read(math.min(body, 65536))
  body = body - #piece
  ngx.print(piece)
  ngx.flush(true)
end
file:close()
if fault < left then
  if arg.stall then ngx.sleep(30) end
  ngx.exit(444)
end
