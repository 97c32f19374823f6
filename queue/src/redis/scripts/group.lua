-- A stream of others, as one of its consumer groups sees it. KEYS[1] is the stream. ARGV: the group, how
-- many entries are counted at most, and how many of them at once. Reads only. Answers {'none'} where there
-- is no stream, {'type', what} where the key is none, {'group'} where the stream has no such group, and else
-- {'seen', ready, in flight, entries read or -1, id of the first that is ready or '', time}.
local stream, group = KEYS[1], ARGV[1]
local most, page = tonumber(ARGV[2]), tonumber(ARGV[3])

local kind = redis.call('TYPE', stream).ok
if kind == 'none' then return {'none'} end
if kind ~= 'stream' then return {'type', kind} end

local found
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local fields = {}
  for nth = 1, #flat, 2 do fields[flat[nth]] = flat[nth + 1] end
  if fields.name == group then found = fields end
end
if not found then return {'group'} end

local last = found['last-delivered-id']
local function after(id, n) return redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', n) end

-- The server does not know the lag where entries were deleted, and has known it wrongly: what lies there
-- counts.
local first, ready = after(last, 1)[1], 0
if first then
  ready = found.lag or 0
  if ready < 1 and redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1] == first[1] then
    ready = redis.call('XLEN', stream)
  end
  if ready < 1 then
    local from = last
    repeat
      local entries = after(from, page)
      ready = ready + #entries
      if #entries > 0 then from = entries[#entries][1] end
    until #entries < page or ready >= most
  end
end

-- Who was made to begin at the beginning has read nothing yet, and the server does not say so.
local n_read = found['entries-read'] or (last == '0-0' and 0) or -1
local time = redis.call('TIME')
return {
  'seen', ready, found.pending, n_read, first and first[1] or '',
  time[1] * 1000 + math.floor(time[2] / 1000),
}
